"""Scoring a folder: files that are no images, failures, tables, what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from xomni_rl.experiments.scoring import FolderScores, ScoringError, score_folder
from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import PromptError
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
    summary = scores.summary.rewards["", "ocr"]
    assert summary.mean == pytest.approx(2 / 3)
    assert (summary.scored, summary.not_applicable, summary.failed) == (3, 0, 0)
    assert 0 <= summary.low < summary.mean < summary.high <= 1
    assert [column for _, column in scores.summary.rewards] == ["ocr", "ocr_exact", "ocr_char"]


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
    assert scores.summary.unreadable == 1
    assert scores.table["ocr"].fillna(-1).tolist() == [1.0, -1.0, 0.0]
    assert "is not an image" in str(scores.table["error"][1])
    summary = scores.summary.rewards["", "ocr"]
    assert (summary.scored, summary.not_applicable, summary.failed) == (2, 0, 1)
    assert "s2.png: is not an image" in console.export_text()


def test_link_to_nowhere_is_a_failed_image_and_the_rest_is_scored(folder: Path) -> None:
    (folder / "images" / "s2.png").unlink()
    (folder / "images" / "s2.png").symlink_to(folder / "nowhere.png")
    scores = run(folder)
    assert scores.table["ocr"].fillna(-1).tolist() == [1.0, -1.0, 0.0]
    assert "No such file" in str(scores.table["error"][1])
    assert scores.summary.failed == {"ocr": 1}


def test_all_files_unreadable_still_gives_a_table(folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.write_text("no")
    scores = run(folder)
    assert not scores.complete
    assert (scores.summary.rewards["", "ocr"].scored, scores.summary.rewards["", "ocr"].failed) == (0, 3)
    assert math.isnan(scores.summary.rewards["", "ocr"].mean)
    assert scores.out.exists()


def test_prompt_without_text_is_not_applicable_and_complete(folder: Path) -> None:
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    (folder / "prompts.jsonl").write_text("\n".join([*lines[:2], json.dumps({"id": "s3", "text": "a plain sign"})]))
    scores = run(folder)
    assert scores.complete
    assert (scores.summary.rewards["", "ocr"].scored, scores.summary.rewards["", "ocr"].not_applicable) == (2, 1)
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
    assert scores.summary.failed == {"ocr": 0, "reward_of_a_user:picky": 1}
    assert scores.summary.problems == ["s2.png: reward_of_a_user:picky: OSError: judge is away"]
    assert scores.table["reward_of_a_user:picky"].fillna(-1).tolist() == [0.5, -1, 0.5]
    assert scores.table["ocr"].tolist() == [1.0, 1.0, 0.0]
    assert scores.summary.rewards["", "reward_of_a_user:picky"].failed == 1


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
