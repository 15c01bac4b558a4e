"""--watch: waits for a run, follows it, ends with it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from xomni_rl.experiments.report.watch import fingerprint, has_ended, watch

WriteRun = Callable[..., Path]


def test_page_follows_a_run_from_before_its_folder_to_its_end(write_run: WriteRun, tmp_path: Path) -> None:
    source, folder = write_run("source"), tmp_path / "run"
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    seen: list[tuple[bool, bool, str]] = []

    def step(_: float) -> None:
        """What a training run does between two looks."""
        page = (folder / "report.html").read_text() if (folder / "report.html").exists() else ""
        seen.append(("data-reload" in page, bool(page), "".join(lines[-1:])))
        turn = len(seen)
        if turn == 1:
            folder.mkdir()
            (folder / "metrics.jsonl").write_text(lines[0])
        elif turn == 3:
            (folder / "metrics.jsonl").write_text("".join(lines))
        elif turn == 4:
            shutil.copy(source / "summary.json", folder / "summary.json")

    told: list[str] = []
    path = watch([folder], None, 0.5, told.append, step)
    assert told == [f"waiting for {folder}", str(folder / "report.html")]
    assert [(reloads, there) for reloads, there, _ in seen] == [(False, False), (True, True), (True, True), (True, True)]
    assert path == folder / "report.html"
    assert "data-reload" not in path.read_text()
    assert "finished" in path.read_text()


def test_page_is_not_written_again_while_nothing_changes(write_run: WriteRun) -> None:
    folder = write_run(finished=False)
    times: list[int] = []

    def step(_: float) -> None:
        times.append((folder / "report.html").stat().st_mtime_ns)
        if len(times) == 3:
            (folder / "summary.json").write_text('{"status": "stopped: interrupted"}')

    watch([folder], None, 0.5, lambda _: None, step)
    assert times[0] == times[1] == times[2]


def test_run_that_goes_on_after_its_summary_has_not_ended(write_run: WriteRun) -> None:
    folder = write_run()
    assert has_ended(folder)
    before = fingerprint(folder)
    later = (folder / "summary.json").stat().st_mtime_ns + 10**9
    os.utime(folder / "metrics.jsonl", ns=(later, later))
    assert not has_ended(folder)
    assert fingerprint(folder) != before


def test_no_time_between_looks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        watch([tmp_path], None, 0.0, print)
