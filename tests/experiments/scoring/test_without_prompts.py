"""Folders without prompts: rewards that read none score them, the others are refused by name."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from xomni_rl.experiments.scoring import FolderScores, ScoringError, ScoringInterruptedError, score_folder
from xomni_rl.rewards.aesthetic import AestheticReward

OWN = """
from xomni_rl.rewards.base import reward
calls = []
@reward(needs=())
def mean(images, prompts):
    calls.append(1)
    if len(calls) == 2:
        raise KeyboardInterrupt
    return [image.mean() for image in images]
def undeclared(images, prompts):
    return [len(prompt.text) for prompt in prompts]
"""


@pytest.fixture
def folder(make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """p0.png to p10.png, and rewards of a user's own."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    made = make_folder(count=11)
    (made / "prompts.jsonl").unlink()
    return made


def run(images: Any, rewards: list[str], out: Path, **options: Any) -> FolderScores:
    return score_folder(images, None, rewards, out, **options)


def test_aesthetic_predictor_scores_any_folder_in_natural_order(folder: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=160)
    (tmp_path / "tiny").mkdir()
    options = {"aesthetic": AestheticReward.write_tiny(tmp_path / "tiny")}
    scores = run(folder, ["aesthetic", "contrast"], tmp_path / "s.parquet", options=options, console=console)
    names = [f"p{index}.png" for index in range(11)]  # p2 before p10
    table = scores.table
    assert (table["file"].tolist(), table["prompt_id"].tolist(), "prompt" in table) == (names, names, False)
    assert scores.complete
    assert (scores.summary.rewards["", "aesthetic"].scored, table["aesthetic"].isna().sum()) == (11, 0)
    assert f"{folder}: 11 images, no prompts" in console.export_text()


@pytest.mark.parametrize(
    ("rewards", "refused"),
    [
        (["contrast", "ocr"], "ocr"),
        (["ocr", "clip", "contrast"], "ocr, clip"),
        (["embedded"], "ocr, clip, rules, ocr_heldout"),
        (["own:undeclared", "own:mean"], "own:undeclared"),  # it may read anything
    ],
)
def test_rewards_that_read_prompts_are_refused_by_name_with_the_remedy(
    folder: Path, tmp_path: Path, rewards: list[str], refused: str
) -> None:
    with pytest.raises(ScoringError, match=rf"give --prompts FILE, without which nothing is scored by: {refused}$"):
        run(folder, rewards, tmp_path / "s.csv")
    assert not (tmp_path / "s.csv").exists()


def test_matching_is_refused_where_there_is_nothing_to_match(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="give --prompts FILE: --match index is for images with prompts"):
        run(folder, ["contrast"], tmp_path / "s.csv", match="index")


def test_prompts_of_one_folder_alone_are_refused(folder: Path, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match=r"images/prompts\.jsonl; give --prompts FILE: other folders have theirs"):
        run([make_folder("with_prompts"), folder], ["contrast"], tmp_path / "s.csv")


def test_interrupted_run_goes_on(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ScoringInterruptedError, match="4 of 11 images are scored and kept"):
        run(folder, ["own:mean"], tmp_path / "s.parquet", batch_size=4)
    scores = run(folder, ["own:mean"], tmp_path / "s.parquet", batch_size=4)
    assert len(sys.modules["own"].calls) == 4  # one, the interrupted one, and the two that were missing
    assert scores.table["own:mean"].notna().all()


def test_models_are_compared_by_file_names_and_the_gallery_shows_them(
    folder: Path, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Ten of the eleven names are in both; half the contrast makes every one of them worse."""
    dull = make_folder("dull", 10, contrast=0.5)
    (dull / "prompts.jsonl").unlink()
    scores = run([folder, dull], ["contrast"], tmp_path / "s.csv", gallery=tmp_path / "page.html")
    (contrast,) = scores.summary.comparisons
    assert (contrast.a, contrast.b, contrast.prompts, contrast.probability_better) == ("images", "dull", 10, 1.0)
    page = (tmp_path / "page.html").read_text()
    entries = json.loads(page.split('id="entries"')[1].split(">", 1)[1].split("</script>")[0])
    assert [entry["p"] for entry in entries[:3]] == ["p0.png", "p1.png", "p2.png"]
