"""Reading run folders: finished, going on, killed and damaged ones."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xomni_rl.experiments.report.data import ReportError, headlines, read_metrics, read_run, step_files

WriteRun = Callable[..., Path]


def test_finished_run_gives_summary_headlines_exact_first(write_run: WriteRun) -> None:
    folder = write_run()
    summary = json.loads((folder / "summary.json").read_text())["heldout"]
    found = read_run(folder).headlines
    assert [headline.name for headline in found] == ["ocr_exact", "ocr_char", "ocr"]
    assert (found[0].before, found[0].after) == (summary["before"]["ocr_exact"], summary["after"]["ocr_exact"])
    assert found[0].best_step == 20


def test_missing_summary_takes_headlines_from_first_and_last_evaluation(tmp_path: Path) -> None:
    lines = [{"step": 0, "heldout/ocr_exact": 0.5}, {"step": 1, "reward": 0.1}, {"step": 2, "heldout/ocr_exact": 0.75}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (headline,) = read_run(tmp_path).headlines
    assert (headline.before, headline.after) == (0.5, 0.75)


def test_one_evaluation_only_has_no_after(write_run: WriteRun) -> None:
    run = read_run(write_run(finished=False))
    assert [headline.after for headline in run.headlines] == [None, None, None]
    assert "no summary yet" in run.status
    assert all(pair.after is None for pair in run.pairs)


def test_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "rew')
    assert read_metrics(path)["reward"].to_dict() == {1: 0.5}


def test_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ReportError, match=r"metrics\.jsonl:2: not JSON"):
        read_metrics(path)


def test_step_written_twice_counts_once_with_its_later_value(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "reward": 0.1}\n{"step": 2, "reward": 0.2}\n{"step": 2, "reward": 0.3}\n')
    assert read_metrics(path)["reward"].tolist() == [0.1, 0.3]


def test_nested_time_becomes_columns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": {"sample": 0.4, "total": 1.0}, "note": "text is no figure"}\n')
    assert read_metrics(path).columns.tolist() == ["time/sample", "time/total"]


def test_pairs_join_the_same_prompt_before_and_after(write_run: WriteRun) -> None:
    run = read_run(write_run(images=6))
    assert len(run.pairs) == 6  # six held-out samples carry pictures
    assert all(pair.after is not None and pair.before.prompt_id == pair.after.prompt_id for pair in run.pairs)
    assert run.heldout_steps == (0, 20)


def test_not_applicable_score_is_nan_and_nothing_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    rows = [{"prompt_id": "a", "score": math.nan, "read": None}, {"prompt_id": "b", "score": 1.0, "read": ""}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rollouts" / "step_000001.parquet")
    first, second = read_run(tmp_path).rollouts
    assert math.isnan(first.score)
    assert (second.score, first.read, second.read) == (1.0, None, "")
    assert first.correct is None  # the run has no exact-match metric


def test_truncated_table_becomes_a_note_and_the_rest_is_read(write_run: WriteRun) -> None:
    folder = write_run()
    path = folder / "rollouts" / "step_000020.parquet"
    path.write_bytes(path.read_bytes()[:100])
    run = read_run(folder)
    assert run.rollouts == []
    assert "step_000020.parquet could not be read" in run.notes[0]
    assert len(run.pairs) == 6


def test_steps_sort_by_number_not_by_name(tmp_path: Path) -> None:
    for step in ("step_1000000.parquet", "step_000002.parquet", "step_000010.parquet", "step_x.parquet"):
        (tmp_path / step).touch()
    assert [step for step, _ in step_files(tmp_path)] == [2, 10, 1000000]


def test_alarms_are_grouped_by_name_with_first_and_last_step(write_run: WriteRun) -> None:
    (alarm,) = read_run(write_run()).alarms
    assert (alarm.name, alarm.count, alarm.first_step, alarm.last_step) == ("zero_variance", 2, 5, 9)


def test_folder_without_run_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no run folder"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="not a folder"):
        read_run(tmp_path / "absent")


def test_nan_held_out_figure_is_left_out(tmp_path: Path) -> None:
    summary = {"heldout": {"before": {"ocr_exact": math.nan, "clip": 0.2}, "after": {"clip": 0.3}}}
    assert [h.name for h in headlines(read_metrics(tmp_path / "none.jsonl"), summary)] == ["clip"]
