"""What a person sees while a run goes on: a live view on a terminal, plain lines elsewhere, warnings only where CI=true."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from xomni_rl.policies.alarms import Alarm

LINES = 20
"""How many plain lines a whole run prints, at most, besides those with held-out figures."""
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 32
POLICY = {"entropy": "entropy", "approx_kl": "KL", "kl_reference": "KL to reference", "clip_fraction": "clipped"}
POLICY |= {"grad_norm": "gradient", "learning_rate": "rate", "zero_variance_share": "equal groups"}


class Display:
    """Shows steps, held-out figures and alarms. A context manager.

    Args:
        console: where to; None = standard error, so that standard output stays free for results.
        steps: of the whole run.
        max_seconds: of the whole run; None = no limit.
    """

    def __init__(self, console: Console | None, steps: int, max_seconds: float | None) -> None:
        self.console = console or Console(stderr=True)
        self.steps, self.max_seconds = steps, max_seconds
        self.quiet = os.environ.get("CI", "").lower() in ("1", "true")
        self._metrics: dict[str, float] = {}
        self._rewards: list[float] = []
        self._heldout: list[tuple[int, dict[str, float]]] = []
        self._alarms: dict[str, tuple[int, int]] = {}
        self._live: Live | None = None
        if self.console.is_terminal and not self.quiet:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn())
            self._bar = RichProgress(TextColumn("training"), *columns, console=self.console)
            self._task = self._bar.add_task("training", total=steps, left="")
            self._live = Live(get_renderable=self.view, console=self.console, refresh_per_second=4)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, step: int, metrics: Mapping[str, float], seconds: float, done: int) -> None:
        """Shows a step.

        Args:
            step: its number; 0 = the evaluation before training.
            metrics: of the step; its times as `time/…`, in seconds.
            seconds: spent on training so far.
            done: how many steps those seconds were spent on.
        """
        self._metrics = dict(metrics)
        if "reward" in metrics:
            self._rewards.append(metrics["reward"])
        evaluated = {name: value for name, value in metrics.items() if name.startswith("heldout/")}
        if evaluated:
            self._heldout.append((step, evaluated))
        left = self.time_left(step, seconds, done)
        if self._live is not None:
            self._bar.update(self._task, completed=step, left=left)
        elif not self.quiet and (evaluated or step % max(1, self.steps // LINES) == 0):
            heldout = [f"{name} {value:.3f}" for name, value in self._heldout[-1][1].items()] if self._heldout else []
            reward = [f"reward {metrics['reward']:.3f}"] if "reward" in metrics else []
            figures = "  ".join([*reward, *heldout])
            self.console.print(f"step {step}/{self.steps}  {figures}  {left}".rstrip(), highlight=False, soft_wrap=True)

    def view(self) -> RenderableType:
        """The live view: bar with what is left, the last step's figures, held-out figures, time, memory and alarms."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in self._rows():
            if text:
                table.add_row(name, Text(text, style="yellow" if name == "alarms" else ""))
        return Group(self._bar, table)

    def _rows(self) -> list[tuple[str, str]]:
        metrics = self._metrics
        reward = f"{metrics['reward']:.3f}  {sparkline(self._rewards)}" if "reward" in metrics else ""
        parts = {name.removeprefix("reward/"): value for name, value in metrics.items() if name.startswith("reward/")}
        policy = {label: metrics[name] for name, label in POLICY.items() if name in metrics}
        alarms = (f"{name} {count}× (last in step {step})" for name, (count, step) in self._alarms.items())
        return [
            ("reward", reward),
            ("components", _figures(parts)),
            ("policy", _figures(policy)),
            *self._heldout_rows(),
            ("step", self._cost()),
            ("alarms", ", ".join(alarms)),
        ]

    def _heldout_rows(self) -> list[tuple[str, str]]:
        """The first evaluation → the last, figure by figure."""
        if not self._heldout:
            return []
        (_, first), (step, last) = self._heldout[0], self._heldout[-1]
        if len(self._heldout) == 1:
            return [("held-out", _figures({name.removeprefix("heldout/"): value for name, value in first.items()}))]
        moved = [f"{name.removeprefix('heldout/')} {first[name]:.3f} → {last[name]:.3f}" for name in first if name in last]
        return [("held-out", f"{'  '.join(moved)}  (step {step})")]

    def _cost(self) -> str:
        """Seconds of the last step with their parts, and the peak of memory."""
        metrics = self._metrics
        total = metrics.get("time/total", 0.0)
        if total <= 0:
            return ""
        parts = {name[5:]: value for name, value in metrics.items() if name.startswith("time/") and name != "time/total"}
        shares = " · ".join(f"{name} {value / total:.0%}" for name, value in parts.items() if value / total >= 0.01)
        peak = f"  peak memory {metrics['memory/peak_gib']:.2f} GiB" if "memory/peak_gib" in metrics else ""
        return f"{total:.2f} s: {shares}{peak}"

    def time_left(self, step: int, seconds: float, done: int) -> str:
        """What is left at the pace so far: "2 min 10 s left"; empty before the first step."""
        if not done:
            return ""
        left = (self.steps - step) * seconds / done
        if self.max_seconds is not None:
            left = max(0.0, min(left, self.max_seconds - seconds))
        return f"{left // 60:.0f} min {left % 60:.0f} s left" if left >= 60 else f"{left:.0f} s left"

    def alarm(self, step: int, alarm: Alarm, count: int) -> None:
        """Shows an alarm, also where everything else is quiet."""
        self._alarms[alarm.name] = (count, step)
        times = f" (raised {count} times)" if count > 1 else ""
        self.warn(f"step {step}: {alarm.name}: {alarm.message}{times}")

    def warn(self, text: str) -> None:
        """Shows a warning."""
        self.console.print(Text.assemble(("warning", "yellow"), f" {text}"), soft_wrap=True)


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """The course of values [n] in at most `width` bars, each the mean of its share of them; empty without values."""
    if not len(values):
        return ""
    means = np.array([part.mean() for part in np.array_split(np.asarray(values, dtype="float64"), min(width, len(values)))])
    span = float(np.ptp(means)) or 1.0
    return "".join(SPARKS[int(height)] for height in np.round((means - means.min()) / span * (len(SPARKS) - 1)))


def _figures(found: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in found.items())
