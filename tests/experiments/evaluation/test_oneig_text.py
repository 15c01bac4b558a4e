"""OneIG-Bench's text: its counts, published and repaired, its score against a computation of its own, and real OCR."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageFont

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.oneig_counts import text_counts, text_score
from xomni_rl.experiments.evaluation.pictures import Drawing
from xomni_rl.experiments.evaluation.run import evaluate
from xomni_rl.experiments.evaluation.suite import build_suite, samples_of
from xomni_rl.experiments.evaluation.summary import summarise
from xomni_rl.prompts import Prompt

TEXTS = {"000": ["Fresh bread", "daily"], "001": ["Night train", "Platform 9"]}
BREAD = ["Fresh bread", "daily"]


def text_file(tmp_path: Path, texts: dict[str, list[str]] = TEXTS, prompts: bool = True) -> Path:
    """As published: an index, the prompts, and the texts as Python writes a list."""
    path = tmp_path / "text_content.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "id", *["prompt_en"] * prompts, "text_content"])
        for index, (name, wanted) in enumerate(texts.items()):
            writer.writerow([index, name, *[f'a sign "{wanted[0]}"'] * prompts, str(wanted)])
    return path


@pytest.mark.parametrize(
    ("read", "texts", "language", "published", "fixed"),
    [
        ("Fresh bread\ndally", BREAD, "en", (1, 2, 3), (1, 2, 3)),
        ("fresh bread daily!", BREAD, "en", (1, 2, 3), (1, 2, 3)),  # case counts, punctuation doesn't
        ("addCriterion\nNo text recognized.", BREAD, "en", (17, 0, 3), (17, 0, 3)),  # "Fresh bread daily" has 17 characters
        ("No text recognized", ["Hi"], "en", (17, 0, 1), (2, 0, 1)),  # 16 of 18 go, one of the others is an i
        ("sun—moon", ["sun moon"], "en", (1, 0, 2), (0, 2, 2)),
        ("open", ["カフェ open"], "en", (0, 1, 1), (4, 1, 2)),
        ("Fresh 面 bread daily", BREAD, "en", (2, 0, 3), (2, 3, 3)),  # Fresh面breaddaily: a space for 面, and one more
        ("a b", ["a\xa0b"], "en", (3, 0, 1), (0, 2, 2)),  # wanted axa0b
        ("daily\nFresh bread", BREAD, "en", (12, 3, 3), (0, 3, 3)),  # "daily " from the front to the back
        ("5折\n面包", ["面包店", "5折"], "zh", (5, 4, 5), (1, 4, 5)),  # 5折面包 for 面包店5折, or for 5折面包店
    ],
)
def test_counts_of_an_image(read: str, texts: list[str], language: str, published: tuple, fixed: tuple):
    assert text_counts(read, str(texts), texts, language, "published") == published
    assert text_counts(read, str(texts), texts, language, "fixed") == fixed


def test_score_weighs_the_three_figures_up_to_a_distance_of_100_or_50():
    assert text_score(120.0, 0.25, 0.5, "en") == pytest.approx(1 - 0.75 * 0.5)  # more than 100 is 100
    assert text_score(20.0, 0.25, 0.5, "en") == pytest.approx(1 - 20 * 0.75 * 0.5 / 100)
    assert text_score(20.0, 0.25, 0.5, "zh") == pytest.approx(1 - 20 * 0.75 * 0.5 / 50)
    assert text_score(20.0, 1.0, 0.5, "en") == 1.0


def own_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (left != right)))
    return row[-1]


def own_clean(text: str) -> str:
    kept = [c for c in text if c.isspace() or (c.isascii() and c.isalnum()) or "一" <= c <= "龥"]
    words = "".join(kept).split()
    return "".join(words) if any("一" <= c <= "龥" for c in kept) else " ".join(words)


def corrupted(text: str, rng: np.random.Generator) -> str:
    letters = [c if rng.random() > 0.15 else rng.choice(["", "x", "。", "\n", c + c]) for c in text]
    return text if rng.random() < 0.3 else "".join(letters)


@pytest.mark.parametrize(
    ("language", "most", "wanted"),
    [
        ("en", 100, [["Night train", "Platform 9, 10:30"], ["It's open"], ["Fresh bread daily " * 12]]),
        ("zh", 50, [["全球供应链中断", "2024年"], ["TechNova"], ["面包店每日新鲜" * 9]]),
    ],
)
def test_figures_are_those_of_a_computation_of_its_own(tmp_path: Path, language: str, most: int, wanted: list[list[str]]):
    rng = np.random.default_rng(0)
    suite = build_suite("oneig_text", {"language": language})
    rows = []
    for model in ("worse", "better"):
        for index, texts in enumerate(wanted):
            for number in range(1, 5):
                read = corrupted("\n".join(texts), rng) if model == "worse" else "\n".join(texts)
                found = text_counts(read, str(texts), texts, language, "published")._asdict()
                row = {"model": model, "prompt_id": str(index), "number": number, "error": None, "read": read}
                rows.append({**row, **found, "complete": float(found["distance"] == 0)})
    table = pd.DataFrame(rows)
    summary = summarise(table, ["worse", "better"], suite.figures(), "")
    distances, matched, total = [], 0, 0
    for row in table[table["model"] == "worse"].itertuples():
        cleaned, truth = own_clean(row.read), own_clean(" ".join(wanted[int(row.prompt_id)]))
        units = list if any("一" <= c <= "龥" for c in truth) else str.split
        distances.append(own_distance(cleaned, truth))
        matched += sum((Counter(units(cleaned)) & Counter(units(truth))).values())
        total += len(units(truth))
    mean, complete, words = np.mean(distances), np.mean([each == 0 for each in distances]), matched / total
    expected = {"text": 1 - min(most, mean) * (1 - complete) * (1 - words) / most}
    expected |= {"completion": complete, "words": words, "edit distance": mean}
    cells = summary["models"]["worse"]
    assert {name: cell["mean"] for name, cell in cells.items()} == pytest.approx(expected)
    assert all(cell["low"] <= cell["mean"] <= cell["high"] for cell in cells.values())
    found = {row["figure"]: row for row in summary["differences"]}
    assert found["text"]["difference"] == pytest.approx(1 - expected["text"])
    assert found["edit distance"]["difference"] == pytest.approx(-mean)
    assert all(row["probability_better"] > 0.95 for row in found.values())  # also of the distance, of which less is better


def page(prompt: Prompt, number: int) -> np.ndarray:
    image = Image.new("RGB", (360, 160), "white")
    draw = ImageDraw.Draw(image)
    for line, text in enumerate(prompt.texts):
        draw.text((20, 12 + 48 * line), text, font=ImageFont.load_default(28), fill="black")
    return np.asarray(image)


def test_pages_are_read_and_scored_under_the_published_names(tmp_path: Path, drawing: Drawing, rendered: Callable):
    suite = build_suite("oneig_text", {"compat": "published"})
    file = text_file(tmp_path)
    prompts = suite.prompts(file)
    assert (suite.language, suite.draws, prompts[0].text) == ("en", True, 'a sign "Fresh bread"')
    (tmp_path / "images" / "text").mkdir(parents=True)
    folder = rendered(suite, prompts, 1, tmp_path / "images", page)
    (folder / "001.png").rename(folder / "text" / "001.png")
    found = evaluate(suite, {"m": str(folder)}, tmp_path / "out", drawing, lambda place: place, prompts=file)
    figures = {name: cell["mean"] for name, cell in found.summary["models"]["m"].items()}
    assert figures == {"text": 1.0, "completion": 1.0, "words": 1.0, "edit distance": 0.0}
    assert found.complete


def test_grid_holds_four_pictures_of_which_a_black_one_takes_no_part_as_published(tmp_path: Path):
    prompt = Prompt(id="000", text="a sign", texts=("Hi",), metadata={"cell": "['Hi']"})
    grid = np.zeros((320, 720, 3), np.uint8)
    grid[:160, :360] = page(prompt, 1)
    for compat, last in (("published", None), ("fixed", 2.0)):  # nothing read for Hi: two characters
        suite = build_suite("oneig_text", {"compat": compat, "grid": True, "language": "en"})
        samples = samples_of(suite, [prompt], 4)
        assert samples[0].names == ("000", "text/000")
        suite.load()
        rows = suite.score([suite.read(grid, number) for number in (1, 2)], samples[:2])
        assert [row["distance"] for row in rows] == [0.0, last]


def test_file_without_prompts_cannot_be_drawn_and_chinese_is_told_by_its_texts(tmp_path: Path, drawing: Drawing):
    suite = build_suite("oneig_text", {})
    file = text_file(tmp_path, {"000": ["全球供应链中断"], "001": ["TechNova"]}, prompts=False)
    with pytest.raises(EvaluationError, match="its files hold no prompts, so embedded can't draw them"):
        evaluate(suite, {"m": "embedded"}, tmp_path, drawing, lambda place: place, prompts=file)
    assert suite.language == "zh"


def test_file_of_another_form_is_refused_with_its_origin(tmp_path: Path):
    (tmp_path / "other.csv").write_text("id,text\n000,x\n")
    with pytest.raises(EvaluationError, match=r"other\.csv: has no columns id and text_content; .*github\.com/OneIG-Bench"):
        build_suite("oneig_text", {}).prompts(tmp_path / "other.csv")
    with pytest.raises(EvaluationError, match=r"--prompts FILE; .*text_content\.csv"):
        build_suite("oneig_text", {}).prompts(None)
