"""Scoring a folder: matching, files that are no images, failures, tables."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from xomni_rl.experiments.scoring import FolderScores, ScoringError, match_images, score_folder, summarise
from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import Prompt, PromptError
from xomni_rl.registry import UnknownNameError

TEXTS = {"s1": "K7AX", "s2": "B2CD", "s3": "WXYZ"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three signs in `images` and their prompts beside it; s3's picture shows another text."""
    (tmp_path / "images").mkdir()
    for name, text in TEXTS.items():
        Image.fromarray(render_sign("JJJJ" if name == "s3" else text, "blue")).save(tmp_path / "images" / f"{name}.png")
    lines = [json.dumps({"id": name, "text": f'a blue sign that says "{text}"'}) for name, text in TEXTS.items()]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(folder: Path, out: str = "scores.csv", **options: Any) -> FolderScores:
    settings: dict[str, Any] = {"rewards": ["ocr"], "options": {"ocr": {"layout": "line"}}} | options
    return score_folder(folder / "images", folder / "prompts.jsonl", out=folder / out, **settings)


def test_signs_are_scored_and_summed_up(folder: Path) -> None:
    scores = run(folder)
    assert scores.complete
    assert scores.table["file"].tolist() == ["s1.png", "s2.png", "s3.png"]
    assert scores.table["ocr"].tolist() == [1.0, 1.0, 0.0]
    assert scores.table["ocr_exact"].tolist() == [1.0, 1.0, 0.0]
    assert scores.table["ocr_read"].tolist()[:2] == ["K7AX", "B2CD"]
    summary = scores.summary["ocr"]
    assert summary.mean == pytest.approx(2 / 3)
    assert (summary.scored, summary.not_applicable, summary.failed) == (3, 0, 0)
    assert 0 <= summary.low < summary.mean < summary.high <= 1
    assert set(scores.summary) == {"ocr", "ocr_exact", "ocr_char"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format_holds_the_same_table(folder: Path, suffix: str) -> None:
    scores = run(folder, f"deep/er/scores{suffix}")
    readers = {
        ".csv": pd.read_csv,
        ".jsonl": lambda path: pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()]),
        ".parquet": pd.read_parquet,
    }
    table = readers[suffix](scores.out)
    assert table.columns.tolist() == scores.table.columns.tolist()
    assert table["ocr"].tolist() == [1.0, 1.0, 0.0]
    assert table["prompt"].tolist() == scores.table["prompt"].tolist()
    assert [path.name for path in scores.out.parent.iterdir()] == [scores.out.name]  # nothing left beside it


def test_batch_size_does_not_change_the_table(folder: Path) -> None:
    pd.testing.assert_frame_equal(run(folder, batch_size=1).table, run(folder, batch_size=2).table)


def test_file_that_is_no_image_is_named_and_the_rest_scored(folder: Path) -> None:
    (folder / "images" / "s2.png").write_text("not a picture")
    console = Console(record=True, width=200)
    scores = run(folder, console=console)
    assert not scores.complete
    assert list(scores.unreadable) == ["s2.png"]
    assert scores.table["ocr"].fillna(-1).tolist() == [1.0, -1.0, 0.0]
    assert "is not an image" in scores.table["error"][1]
    assert (scores.summary["ocr"].scored, scores.summary["ocr"].not_applicable) == (2, 0)
    assert "s2.png: is not an image" in console.export_text()


def test_all_files_unreadable_still_gives_a_table(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.write_text("no")
    scores = run(folder)
    assert not scores.complete
    assert scores.summary["ocr"].scored == 0
    assert math.isnan(scores.summary["ocr"].mean)
    assert scores.out.exists()


def test_prompt_without_text_is_not_applicable_and_complete(folder: Path) -> None:
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    (folder / "prompts.jsonl").write_text("\n".join([*lines[:2], json.dumps({"id": "s3", "text": "a plain sign"})]))
    scores = run(folder)
    assert scores.complete
    assert (scores.summary["ocr"].scored, scores.summary["ocr"].not_applicable) == (2, 1)
    assert math.isnan(scores.table["ocr"][2])


def test_failing_reward_is_named_and_leaves_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "reward_of_a_user.py").write_text(
        "def picky(images, prompts):\n"
        "    if any(prompt.id == 's2' for prompt in prompts):\n"
        "        raise OSError('judge is away')\n"
        "    return [0.5] * len(images)\n"
    )
    monkeypatch.chdir(folder)
    scores = run(folder, rewards=["ocr", "reward_of_a_user:picky"])
    assert not scores.complete
    assert scores.failures == {"ocr": {}, "reward_of_a_user:picky": {"s2.png": "OSError: judge is away"}}
    assert scores.table["reward_of_a_user:picky"].fillna(-1).tolist() == [0.5, -1, 0.5]
    assert scores.table["ocr"].tolist() == [1.0, 1.0, 0.0]
    assert scores.summary["reward_of_a_user:picky"].failed == 1


def prompts_of(*ids: str) -> list[Prompt]:
    return [Prompt(identifier, "p") for identifier in ids]


def paths_of(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def test_names_match_ids_whatever_the_order() -> None:
    pairs = match_images(paths_of("b.png", "a.jpg"), prompts_of("a", "b"))
    assert [(path.name, prompt.id) for path, prompt in pairs] == [("a.jpg", "a"), ("b.png", "b")]


def test_files_are_matched_in_natural_order_if_no_name_is_an_id(folder: Path) -> None:
    for number, name in zip((10, 2, 1), ("s3", "s2", "s1"), strict=True):
        (folder / "images" / f"{name}.png").rename(folder / "images" / f"{number}.png")
    table = run(folder).table
    assert table["file"].tolist() == ["1.png", "2.png", "10.png"]
    assert table["ocr"].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("files", "ids", "message"),
    [
        (("a.png", "a.jpg", "b.png"), ("a", "b"), r"several images for one prompt: a\.png, a\.jpg"),
        (("a.png", "c.png"), ("a", "b"), r"images whose name is no prompt id: c\.png"),
        (("a.png",), ("a", "b"), "prompts without an image: b"),
        (("x.png",), ("a", "b"), r"1 images and 2 prompts: no file name is a prompt id.*x\.png.*a"),
    ],
)
def test_ambiguous_or_missing_partners_are_named(files: tuple[str, ...], ids: tuple[str, ...], message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        match_images(paths_of(*files), prompts_of(*ids))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rewards": ["orc"], "options": {}}, UnknownNameError, 'unknown reward "orc"; nearest: ocr'),
        ({"rewards": []}, ScoringError, "at least one reward"),
        ({"rewards": ["ocr", "ocr"]}, ScoringError, "named twice"),
        ({"options": {"clip": {}}}, ScoringError, 'options for "clip"'),
        ({"options": {"ocr": {"metrc": 1}}}, ValueError, "nearest: metric"),
        ({"batch_size": 0}, ScoringError, "batch_size must be at least 1"),
        ({"out": "scores.xlsx"}, ScoringError, r"written to \.csv, \.jsonl, \.parquet"),
        ({"out": "images"}, ScoringError, "scores are written to"),
    ],
)
def test_bad_arguments_raise_before_any_work(
    folder: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(folder, **options)


def test_bad_prompt_line_empty_folder_and_blocked_output_are_named(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(ScoringError, match="holds no image"):
        score_folder(folder / "empty", folder / "prompts.jsonl", ["ocr"], folder / "s.csv")
    with pytest.raises(ScoringError, match="is no folder"):
        score_folder(folder / "none", folder / "prompts.jsonl", ["ocr"], folder / "s.csv")
    with pytest.raises(ScoringError, match=r"s\.csv: cannot be written"):  # its folder would be a file
        score_folder(folder / "images", folder / "prompts.jsonl", ["ocr"], folder / "prompts.jsonl" / "s.csv")
    (folder / "prompts.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(PromptError, match=r'prompts\.jsonl:2: unknown key "txt"'):
        run(folder)


def test_old_table_stays_when_scoring_stops(folder: Path) -> None:
    (folder / "scores.csv").write_text("old")
    (folder / "images" / "stranger.png").write_bytes((folder / "images" / "s1.png").read_bytes())
    with pytest.raises(ScoringError, match=r"stranger\.png"):
        run(folder)
    assert (folder / "scores.csv").read_text() == "old"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_summary_of_equal_scores_has_no_width_and_of_one_no_interval() -> None:
    same = summarise(np.array([0.5, 0.5, 0.5, np.nan]), failed=1, seed=0)
    assert (same.low, same.mean, same.high) == (0.5, 0.5, 0.5)
    assert (same.scored, same.not_applicable, same.failed) == (3, 0, 1)
    assert math.isnan(summarise(np.array([0.5]), failed=0, seed=0).low)


def test_interval_is_that_of_the_mean() -> None:
    # 400 coin flips: the mean's standard error is 0.5 / √400 = 0.025, so the interval is about 4·0.025 = 0.098 wide.
    values = np.tile([0.0, 1.0], 200)
    summary = summarise(values, failed=0, seed=0)
    assert summary.high - summary.low == pytest.approx(2 * 1.96 * 0.025, rel=0.08)
    assert summary == summarise(values, failed=0, seed=0)
