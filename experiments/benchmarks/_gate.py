"""Lets a training loop through some steps at a time, so that two of them can run in turns, and measures what passes."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO


class Gate:
    """What a training loop calls at the start of every step.

    It reports over `answers`, one line of JSON a turn: `seconds` of each step since the last report, from start to start,
    and `mib`, the process's peak resident memory so far above what was resident when the first step began; then it waits
    for the number of steps of the next turn on `orders`.

    Args:
        orders: a line with a number of steps per turn.
        answers: where reports go.
    """

    def __init__(self, orders: TextIO, answers: TextIO) -> None:
        self._orders, self._answers = orders, answers
        self._left = 0
        self._began: float | None = None
        self._seconds: list[float] = []
        self._resident = 0.0

    def wait(self) -> None:
        """Ends the account of the step before, and returns when the next one may begin. Raises: EOFError without orders."""
        if self._began is not None:
            self._seconds.append(time.perf_counter() - self._began)
        else:
            forget_peak()
            self._resident = peak_mib()
        while self._left == 0:
            self.report(seconds=self._seconds, mib=peak_mib() - self._resident)
            self._seconds = []
            order = self._orders.readline()
            if not order:
                raise EOFError("nobody gives orders any more")
            self._left = int(order)
        self._left -= 1
        self._began = time.perf_counter()

    def report(self, **figures: Any) -> None:
        self._answers.write(json.dumps(figures) + "\n")
        self._answers.flush()


def peak_mib() -> float:
    """Peak resident memory of this process in MiB.

    Linux keeps it per program (VmHWM); its `ru_maxrss` starts at that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def forget_peak() -> None:
    """Lowers the peak to what is resident now, where the system can (Linux); elsewhere what loading took hides a part."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
