"""A report that follows its runs: written again whenever a run folder changes, until every run has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from xomni_rl.experiments.report.data import is_run
from xomni_rl.experiments.report.page import build_report

FILES = ("config.yaml", "metrics.jsonl", "alarms.jsonl", "summary.json", "reward_checks.json")
FOLDERS = ("heldout", "rollouts")


def watch(
    folders: Sequence[Path],
    out: Path | None,
    every: float,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Writes the report now and after every change, and once more, without loading itself again, when all runs have ended.

    Args:
        folders: of the runs; those that are not there yet are waited for.
        out: as `build_report` takes it.
        every: seconds between two looks, > 0; the page loads itself again as often.
        tell: is given what happens, a line each.
        sleep: waits that many seconds.
    Returns: the path written.
    Raises: ReportError as `build_report` raises it; ValueError for `every` of 0 or less.
    """
    if every <= 0:
        raise ValueError(f"the seconds between two looks must be more than 0, not {every:g}")
    waiting = False
    while missing := [folder for folder in folders if not is_run(folder)]:
        if not waiting:
            tell(f"waiting for {', '.join(map(str, missing))}")
        waiting = True
        sleep(every)
    seen = None
    while True:
        done = all(has_ended(folder) for folder in folders)  # before reading: what comes after is read the next time
        if (now := [fingerprint(folder) for folder in folders]) != seen or done:
            path = build_report(folders, out, reload=0.0 if done else every)
            if seen is None:
                tell(str(path))
            seen = now
        if done:
            return path
        sleep(every)


def has_ended(folder: Path) -> bool:
    """Whether the run has written its summary, and no step after it (as one that goes on from a checkpoint does)."""
    summary, metrics = folder / "summary.json", folder / "metrics.jsonl"
    if not summary.exists():
        return False
    return not metrics.exists() or summary.stat().st_mtime_ns >= metrics.stat().st_mtime_ns


def fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of what the report reads; it differs when there is something new."""
    found = [folder / name for name in (*FILES, *FOLDERS) if (folder / name).exists()]
    return tuple((path.name, (state := path.stat()).st_size, state.st_mtime_ns) for path in found)
