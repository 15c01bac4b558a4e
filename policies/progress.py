"""What a person sees while a run goes on: a live bar on a terminal, plain lines elsewhere, warnings only where CI=true."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from xomni_rl.policies.alarms import Alarm

LINES = 20
"""How many plain lines a whole run prints, at most, besides those with held-out figures."""


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
        self._heldout = ""
        self._bar: RichProgress | None = None
        if self.console.is_terminal and not self.quiet:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn())
            self._bar = RichProgress(TextColumn("training"), *columns, console=self.console)
            self._task = self._bar.add_task("training", total=steps, figures="")
        self._shown = time.monotonic()

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, step: int, metrics: Mapping[str, float], seconds: float, done: int) -> None:
        """Shows a step.

        Args:
            step: its number; 0 = the evaluation before training.
            metrics: of the step.
            seconds: spent on training so far.
            done: how many steps those seconds were spent on.
        """
        evaluated = {name: value for name, value in metrics.items() if name.startswith("heldout/")}
        if evaluated:
            self._heldout = "  ".join(f"{name} {value:.3f}" for name, value in evaluated.items())
        reward = [f"reward {metrics['reward']:.3f}"] if "reward" in metrics else []
        figures = "  ".join([*reward, *([self._heldout] if self._heldout else [])])
        left = self.time_left(step, seconds, done)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=f"{figures}  {left}")
        elif not self.quiet and (evaluated or step % max(1, self.steps // LINES) == 0):
            self.console.print(f"step {step}/{self.steps}  {figures}  {left}".rstrip(), highlight=False, soft_wrap=True)

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
        times = f" (raised {count} times)" if count > 1 else ""
        self.warn(f"step {step}: {alarm.name}: {alarm.message}{times}")

    def warn(self, text: str) -> None:
        """Shows a warning."""
        self.console.print(f"[yellow]warning[/] {escape(text)}", soft_wrap=True, highlight=False)
