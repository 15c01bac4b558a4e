"""Our trainer and TRL's on one job, each in its own process, in turns; medians, and a check that both did the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

SIDES = ("ours", "trl")
PATIENT = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait for others do not spin: where something else runs too, spinning makes every step ten times as long."""
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


def take_turns(turns: Turns, overrides: Sequence[str]) -> tuple[dict[str, Side], dict[str, dict[str, Any]]]:
    """Trains both sides: A B A B …

    Args:
        turns: how much.
        overrides: of the default configuration, as on the command line.
    Returns: the sides with their figures, and what each did, by name.
    Raises: RuntimeError if a side fails.
    """
    with started(turns.total, overrides) as sides:
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
def started(steps: int, overrides: Sequence[str]) -> Iterator[dict[str, Side]]:
    """Both processes, loading; ended at the end, whatever happens."""
    with tempfile.TemporaryFile("w+") as ours, tempfile.TemporaryFile("w+") as theirs:
        sides = {name: _start(name, steps, overrides, errors) for name, errors in zip(SIDES, (ours, theirs), strict=True)}
        try:
            yield sides
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.communicate()


def _start(name: str, steps: int, overrides: Sequence[str], errors: IO[str]) -> Side:
    command = [sys.executable, "-c", _PROGRAM.format(package=__package__), json.dumps([name, steps, list(overrides)])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
    process = subprocess.Popen(command, **pipes, text=True, env=PATIENT | os.environ)
    return Side(name, process, errors)


def compared(sides: dict[str, Side]) -> dict[str, Any]:
    """Figures of both sides.

    Returns: `ratio` (median over the turns of the medians' quotient, ours / TRL's), `ratios` of the turns, `memory_ratio`,
        `seconds` and `peer_seconds` (medians of all steps), `spread` and `peer_spread` (quartiles of all steps), `mib` and
        `peer_mib`.
    """
    ours, peer = (np.array(sides[name].seconds) for name in SIDES)
    ratios = np.median(ours, axis=1) / np.median(peer, axis=1)
    return {
        "ratio": float(np.median(ratios)),
        "ratios": [round(float(ratio), 3) for ratio in ratios],
        "memory_ratio": sides["ours"].mib / sides["trl"].mib,
        "seconds": float(np.median(ours)),
        "peer_seconds": float(np.median(peer)),
        "spread": [round(float(q), 4) for q in np.quantile(ours, (0.25, 0.75))],
        "peer_spread": [round(float(q), 4) for q in np.quantile(peer, (0.25, 0.75))],
        "mib": round(sides["ours"].mib, 1),
        "peer_mib": round(sides["trl"].mib, 1),
    }
