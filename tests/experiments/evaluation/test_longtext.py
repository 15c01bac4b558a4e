"""LongText-Bench end to end: rendered pages, real OCR, and a tiny reader behind a real server."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.rewards.judge_server import MODEL, JudgeServer
from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.longtext_counts import counts
from xomni_rl.experiments.evaluation.pictures import Drawing
from xomni_rl.experiments.evaluation.run import evaluate
from xomni_rl.experiments.evaluation.suite import build_suite
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.vlm_tiny import write_tiny_vlm

ROWS = [
    {
        "prompt_id": 3,
        "prompt": 'a sign "Fresh bread daily"',
        "text": ["Fresh bread daily"],
        "category": "sign",
        "length": "short",
    },
    {"prompt_id": 12, "prompt": "a poster", "text": ["Night train", "Platform 9"], "category": "poster", "length": "short"},
]


def prompt_file(tmp_path: Path, rows: list[dict] = ROWS) -> Path:
    path = tmp_path / "en.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def page(prompt: Prompt, number: int) -> np.ndarray:
    """The texts, line by line; the second picture of a prompt has a line too many."""
    image = Image.new("RGB", (360, 160), "white")
    draw = ImageDraw.Draw(image)
    for line, text in enumerate([*prompt.texts, *["Spam"] * (number == 2)]):
        draw.text((20, 12 + 48 * line), text, font=ImageFont.load_default(28), fill="black")
    return np.asarray(image)


def test_pages_are_read_and_counted_under_the_published_names(tmp_path: Path, drawing: Drawing, rendered: Callable):
    """Wanted 3 and 4 words, both pictures show all; the second adds one: 14 read of 14, of 16 words there."""
    suite = build_suite("longtext", {"compat": "fixed"})
    file = prompt_file(tmp_path)
    folder = rendered(suite, suite.prompts(file), 2, tmp_path / "images", page)
    assert sorted(path.name for path in folder.iterdir()) == ["0003_1.png", "0003_2.png", "0012_1.png", "0012_2.png"]
    two = Drawing(drawing.sampling, count=2)
    found = evaluate(suite, {"m": str(folder)}, tmp_path / "out", two, lambda place: place, prompts=file)
    figures = {name: cell["mean"] for name, cell in found.summary["models"]["m"].items()}
    assert figures == pytest.approx({"score": 14 / 14, "precision": 14 / 16, "f1": 2 * 14 / 30})
    assert found.summary["categories"]["sign"]["m"]["precision"]["mean"] == pytest.approx(6 / 7)


def test_served_reader_is_counted_by_what_it_says(tmp_path: Path, drawing: Drawing, rendered: Callable):
    model = write_tiny_vlm(tmp_path / "reader", [("Fresh", "Night"), ("daily", "train")])
    file = prompt_file(tmp_path)
    with JudgeServer(model) as server:
        vlm = {"backend": "server", "url": server.url, "model": MODEL, "concurrency": 2}
        suite = build_suite("longtext", {"engine": "vlm", "engine_options": vlm})
        folder = rendered(suite, suite.prompts(file), 1, tmp_path / "images", page)
        found = evaluate(suite, {"m": str(folder)}, tmp_path / "out", drawing, lambda place: place, prompts=file)
    assert found.complete
    assert set(found.table["read"]) <= {a + b for a in ("Fresh", "Night") for b in ("daily", "train")}
    expected = [counts(row.read, row.target.split("\n"), "en", "published") for row in found.table.itertuples()]
    assert list(found.table["matched"]) == [count.matched for count in expected]
    assert list(found.table["total"]) == [3.0, 4.0]


def test_file_of_both_languages_is_refused(tmp_path: Path):
    rows = [*ROWS, {"prompt_id": 3, "prompt": "一块招牌", "text": ["面包"], "category": "sign", "length": "short"}]
    with pytest.raises(EvaluationError, match="holds both languages"):
        build_suite("longtext", {}).prompts(prompt_file(tmp_path, rows))


def test_missing_prompt_file_says_where_to_get_it():
    with pytest.raises(EvaluationError, match=r"--prompts FILE; .*X-Omni/LongText-Bench on the Hugging Face hub"):
        build_suite("longtext", {}).prompts(None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compat": "pubished"}, "nearest: published"),
        ({"language": "fr"}, "unknown language"),
        ({"min_confidence": 2}, r"min_confidence must be in \[0, 1\]"),
        ({"engine": "rapidor"}, "nearest: rapidocr"),
    ],
)
def test_wrong_option_is_a_sentence(options: dict, reason: str):
    with pytest.raises(ValueError, match=reason):
        build_suite("longtext", options)
