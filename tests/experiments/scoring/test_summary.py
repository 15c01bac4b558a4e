"""What is said of a table: means, counts, histograms, and models against each other."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from xomni_rl.experiments.scoring import ScoringError, score_folder
from xomni_rl.experiments.scoring.scorers import components_of, wider
from xomni_rl.experiments.scoring.show import bars, print_summary
from xomni_rl.experiments.scoring.summary import Summary, summary_of
from xomni_rl.registry import UnknownNameError


def test_summary_of_equal_scores_has_no_width_and_of_one_no_interval() -> None:
    same = summary_of(np.array([0.5, 0.5, 0.5, np.nan]), failed=1, seed=0)
    assert (same.low, same.mean, same.high) == (0.5, 0.5, 0.5)
    assert (same.scored, same.not_applicable, same.failed) == (3, 0, 1)
    assert (sum(same.histogram), same.histogram[0]) == (3, 3)
    assert math.isnan(summary_of(np.array([0.5]), failed=0, seed=0).low)
    assert summary_of(np.array([np.nan]), failed=0, seed=0).not_applicable == 1


def test_bars_show_every_image_and_their_shares() -> None:
    # 8 of 8 is a whole block, 4 of 8 four eighths of one, and 1 of 800 would round to nothing but is there.
    assert bars([8, 4, 0]) == "█▄ "
    assert bars([800, 1, 0]) == "█▁ "
    assert bars([]) == bars([0, 0]) == ""


def test_names_and_reasons_are_printed_as_they_are() -> None:
    row, name = summary_of(np.array([0.5]), failed=1, seed=0), "bad:one:[red]"
    rewards = {(model, name): row for model in ("a:two:[/]", "b")}
    console = Console(record=True, width=200)
    print_summary(Summary(rewards, problems=["x.png: y:key:[0]"]), "to :one: [bold]", console)
    shown = console.export_text()
    assert all(text in shown for text in (name, "a:two:[/]", "x.png: y:key:[0]", "to :one: [bold]"))


def test_models_are_compared_on_the_same_prompts(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    sharp, dull = make_folder("sharp", 30), make_folder("dull", 30, contrast=0.5)
    console = Console(record=True, width=160)
    scores = score_folder([sharp, dull], None, ["contrast", "sharpness"], tmp_path / "s.csv", console=console)
    table = scores.table
    assert table.columns.tolist()[:4] == ["model", "file", "prompt_id", "prompt"]
    assert table["model"].tolist() == ["sharp"] * 30 + ["dull"] * 30
    contrast = scores.summary.comparisons[0]
    assert (contrast.a, contrast.b, contrast.column, contrast.prompts) == ("sharp", "dull", "contrast", 30)
    means = table.groupby("model")["contrast"].mean()
    assert contrast.difference == pytest.approx(means["sharp"] - means["dull"], abs=1e-12)
    assert 0 < contrast.low < contrast.difference < contrast.high
    assert contrast.probability_better == 1.0  # every picture of the one has twice the contrast of the other's
    assert "models on the same prompts" in console.export_text()


def test_folders_of_one_name_are_told_apart_by_their_parents(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folders = []
    for run in ("run1", "run2"):
        (tmp_path / run).mkdir()
        folders.append(make_folder(f"{run}/images", 2))
    scores = score_folder(folders, None, ["contrast"], tmp_path / "s.csv")
    assert scores.table["model"].tolist() == ["run1/images"] * 2 + ["run2/images"] * 2
    with pytest.raises(ScoringError, match="a folder is given twice"):
        score_folder([folders[0], folders[0]], None, ["contrast"], tmp_path / "s.csv")


def test_interval_of_several_images_per_prompt_is_over_prompts(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder(count=6)
    for path in list(folder.glob("*.png")):
        for sample in (1, 2, 3):  # three equal pictures say no more than one
            path.with_stem(f"{path.stem}_{sample}").write_bytes(path.read_bytes())
        path.unlink()
    three = score_folder(folder, None, ["contrast"], tmp_path / "three.parquet")
    one = score_folder(make_folder("one", 6), None, ["contrast"], tmp_path / "one.parquet")
    assert three.table["sample"].tolist() == [1, 2, 3] * 6
    several, single = three.summary.rewards["", "contrast"], one.summary.rewards["", "contrast"]
    assert (several.low, several.high) == pytest.approx((single.low, single.high), abs=1e-9)
    assert (several.scored, single.scored) == (18, 6)


def test_mix_gives_its_components_with_their_options() -> None:
    components = components_of(["embedded", "contrast"], {"ocr": {"metric": "exact"}})
    assert list(components) == ["ocr", "clip", "rules", "ocr_heldout", "contrast"]
    assert components["ocr_heldout"] == {
        "reward": "ocr",
        "options": {"metric": "edit", "layout": "line", "engine": "ppocrv4"},
    }
    assert components["ocr"]["options"] == {"metric": "exact", "layout": "line", "engine": "rapidocr"}
    with pytest.raises(ScoringError, match="named twice: ocr"):
        components_of(["ocr", "embedded"])
    with pytest.raises(UnknownNameError, match='unknown reward "embeded"; nearest: embedded'):
        components_of(["embeded"])


def test_details_of_different_kinds_share_a_column_that_holds_both(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    assert [wider("none", "int"), wider("int", "float"), wider("bool", "int"), wider("str", "none")] == [
        "int",
        "float",
        "str",
        "str",
    ]
    (tmp_path / "odd.py").write_text(
        "import numpy as np\nfrom xomni_rl.rewards.base import RewardResult\n"
        "def odd(images, prompts):\n"
        "    found = {'p0': 1, 'p1': 'two\\u2028lines', 'p2': [3], 'p3': None, 'p4': float('nan')}\n"
        "    return RewardResult(np.zeros(len(images)), [{'x': found[p.id]} for p in prompts])\n"
    )
    folder = make_folder(count=5)
    scores = score_folder(folder, None, [f"{tmp_path / 'odd.py'}:odd"], tmp_path / "s.jsonl", batch_size=1)
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().split("\n") if line]
    assert [row[f"{tmp_path / 'odd.py'}:odd_x"] for row in rows] == ["1", "two\u2028lines", "[3]", None, None]
    assert scores.complete
