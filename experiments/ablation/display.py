"""What a person sees while an ablation runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from xomni_rl.experiments.ablation.plan import PlannedRun
from xomni_rl.experiments.report.data import PREFERRED_HEADLINES

FRAME = 1.0  # seconds between two looks at the runs' files
PULSE = 300.0  # seconds between two plain lines about runs at work
TAIL = 16384  # bytes at the end of metrics.jsonl that hold its last line
STYLES = {"finished": "green", "max_seconds": "green", "failed": "bold red", "running": "cyan", "interrupted": "yellow"}


class Display:
    """Shows the runs' states. A context manager.

    Args:
        console: where to; None = standard error, so that standard output stays free for the tables.
        folder: of the ablation.
        steps: a run's folder → its number of steps.
    """

    def __init__(self, console: Console | None, folder: Path, steps: Mapping[str, int]) -> None:
        self.console = console or Console(stderr=True)
        self.folder, self.steps = folder, steps
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._began = self._pulse = time.monotonic()
        self._frame = 0.0
        self._before: float | None = None
        self._last: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, *, bad: bool = False) -> None:
        """One line about one run; on a terminal only what went wrong, above the table that shows the rest."""
        if self._live is None or bad:
            self.console.print(Text(text, "red" if bad else ""), soft_wrap=True)

    def refresh(self, runs: Sequence[PlannedRun], seconds: Mapping[str, float]) -> None:
        """Shows the states again.

        Args:
            runs: all runs of this call.
            seconds: a run's folder → for how long its process has been at work.
        """
        now = time.monotonic()
        pulse = self._live is None and now - self._pulse > PULSE
        if not pulse and (self._live is None or now - self._frame < FRAME):
            return
        self._last = {run.folder: last_metrics(self.folder / run.folder / "metrics.jsonl") for run in runs}
        if self._live is not None:
            self._frame = now
            self._live.update(self._table(runs, seconds), refresh=True)
        else:
            self._pulse = now
            working = ", ".join(f"{run.label} {self._step(run)}" for run in runs if run.status == "running")
            self.say(f"{self._count(runs)}; at work: {working}{self._time_left(runs)}")

    def figures(self, summary: Mapping[str, Any]) -> str:
        """ ": ocr_exact 0.375 → 0.500" of a finished run; "" without held-out figures."""
        heldout = summary.get("heldout") or {}
        before, after = heldout.get("before") or {}, heldout.get("after") or {}
        names = [name for name in (*PREFERRED_HEADLINES, *before) if name in before and name in after and name != "step"]
        return f": {names[0]} {before[names[0]]:.3f} → {after[names[0]]:.3f}" if names else ""

    def _table(self, runs: Sequence[PlannedRun], seconds: Mapping[str, float]) -> RenderableType:
        table = Table(box=None, pad_edge=False)
        for title in ("variant", "seed", "", "step", "reward", "held-out", "time"):
            table.add_column(title, justify="right" if title in ("seed", "step", "time") else "left")
        fits = max(4, self.console.height - 6)
        shown = runs if len(runs) <= fits else [run for run in runs if run.status in ("running", "failed")][:fits]
        for run in shown:
            last = self._last[run.folder]
            status = Text(run.status.partition(":")[0], STYLES.get(run.status.partition(":")[0], "dim"))
            spent = run.seconds + seconds.get(run.folder, 0.0)
            reward = f"{last['reward']:.3f}" if "reward" in last else ""
            clock = f"{spent // 60:.0f}:{spent % 60:02.0f}" if spent else ""
            table.add_row(Text(run.variant), str(run.seed), status, self._step(run), reward, _heldout(last), clock)
        bar = ProgressBar(total=max(1, sum(self.steps.values())), completed=self._done(runs), width=24)
        below = Table.grid(padding=(0, 1))
        below.add_row(bar, Text(f"{self._count(runs)}{self._time_left(runs)}"))
        return Group(table, below)

    def _step(self, run: PlannedRun) -> str:
        last = self._last[run.folder]
        return f"{last['step']:.0f}/{self.steps[run.folder]}" if "step" in last else ""

    def _count(self, runs: Sequence[PlannedRun]) -> str:
        ended = sum(run.status not in ("waiting", "running") for run in runs)
        failed = sum(run.status == "failed" for run in runs)
        return f"{ended} of {len(runs)} runs ended" + (f", {failed} failed" if failed else "")

    def _done(self, runs: Sequence[PlannedRun]) -> float:
        """Steps done or no longer to be done."""
        still = ("waiting", "running")
        steps = {run.folder: self.steps[run.folder] for run in runs}
        return float(sum(self._last[r.folder].get("step", 0) if r.status in still else steps[r.folder] for r in runs))

    def _time_left(self, runs: Sequence[PlannedRun]) -> str:
        """At the pace since the start; "" before anything was done."""
        done = self._done(runs)
        self._before = done if self._before is None else self._before
        if done <= self._before:
            return ""
        left = (sum(self.steps.values()) - done) * (time.monotonic() - self._began) / (done - self._before)
        return f", {left // 60:.0f} min {left % 60:.0f} s left"


def last_metrics(file: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl; {} if there is none yet."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - TAIL))
            lines = stream.read().split(b"\n")[:-1]
        return dict(json.loads(lines[-1])) if lines else {}
    except (OSError, ValueError):
        return {}  # not there yet, or just being written


def _heldout(last: Mapping[str, Any]) -> str:
    found = [name for name in last if name.startswith("heldout/")]
    first = [f"heldout/{name}" for name in PREFERRED_HEADLINES if f"heldout/{name}" in found]
    names = [*first, *found]
    return f"{names[0].removeprefix('heldout/')} {last[names[0]]:.3f}" if names else ""
