"""Trainers on one job, each in its own process, in turns, and the medians of what they take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

_PROGRAM = "import sys, json, {package}._train_sides as sides; sides.serve(*json.loads(sys.argv[1]))"


@dataclass(frozen=True)
class Turns:
    """How long to train, and how often to change sides.

    Attributes:
        warm_up: steps of each side that are not counted, at the start.
        rounds: turns of each side.
        steps: counted steps a turn.
    """

    warm_up: int = 2
    rounds: int = 4
    steps: int = 3

    @property
    def total(self) -> int:
        """Steps of each side; the last is not counted, because a run ends in it."""
        return self.warm_up + self.rounds * self.steps + 1


@dataclass
class Side:
    """One trainer in its own process, and what it has reported.

    Attributes:
        seconds: of each counted step, a list a turn.
        mib: peak resident memory above what was resident before the first step, over warm-up and counted steps.
    """

    name: str
    process: subprocess.Popen[str]
    errors: IO[str]
    seconds: list[list[float]] = field(default_factory=list)
    mib: float = 0.0

    def answer(self) -> dict[str, Any]:
        """The next report. Raises: RuntimeError with the process's last words if there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            words = self.errors.read().strip().splitlines() or ["no word"]
            raise RuntimeError(f"{self.name}: {words[-1]}")
        answered: dict[str, Any] = json.loads(line)
        return answered

    def train(self, steps: int) -> dict[str, Any]:
        """Trains some steps. Returns: their report."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()


def take_turns(
    names: Sequence[str], turns: Turns, overrides: Sequence[str]
) -> tuple[dict[str, Side], dict[str, dict[str, Any]]]:
    """Trains the sides: A B A B …

    Args:
        names: of the sides, see `_train_sides.serve`.
        turns: how much.
        overrides: of the default configuration, as on the command line.
    Returns: the sides with their figures, and what each did, by name.
    Raises: RuntimeError if a side fails.
    """
    with started(names, turns.total, overrides) as sides:
        for side in sides.values():
            side.answer()
        for side in sides.values():
            side.train(turns.warm_up)
        for _ in range(turns.rounds):
            for side in sides.values():
                report = side.train(turns.steps)
                side.seconds.append(report["seconds"])
                side.mib = report["mib"]
        done = {name: side.train(1) for name, side in sides.items()}
    return sides, done


@contextmanager
def started(names: Sequence[str], steps: int, overrides: Sequence[str]) -> Iterator[dict[str, Side]]:
    """The processes, loading; ended at the end, whatever happens."""
    with ExitStack() as stack:
        sides = {name: _start(name, steps, overrides, stack.enter_context(TemporaryFile("w+"))) for name in names}
        try:
            yield sides
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.communicate()


def _start(name: str, steps: int, overrides: Sequence[str], errors: IO[str]) -> Side:
    command = [sys.executable, "-c", _PROGRAM.format(package=__package__), json.dumps([name, steps, list(overrides)])]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
    return Side(name, process, errors)


def ratios(sides: Mapping[str, Side], peer: str) -> list[float]:
    """Our seconds of a step over the peer's, each the median of a turn: one ratio a turn."""
    ours, theirs = (np.median(sides[name].seconds, axis=1) for name in ("ours", peer))
    return [float(ratio) for ratio in ours / theirs]


def measured(side: Side) -> dict[str, Any]:
    """Figures of one side: `seconds` of a step (median of all counted ones), their `quartiles`, and `mib`."""
    quartiles = np.quantile(np.array(side.seconds), (0.25, 0.75))
    return {
        "seconds": float(np.median(side.seconds)),
        "quartiles": [round(float(quartile), 4) for quartile in quartiles],
        "mib": round(side.mib, 1),
    }
