"""The factor by which a component's weight changes over training: piecewise linear in the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """Factors at some training steps, linear between them and constant beyond the first and the last.

    Args:
        knots: (step, factor) pairs, steps ascending; the first rollout of a run is step 1.
    Raises: ValueError for no knots, steps that do not ascend, or a factor that is negative or not finite.

    >>> Schedule.parse({0: 1.0, 200: 0.2}).factor(100)
    0.6
    """

    knots: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.knots]
        if not steps or steps != sorted(set(steps)):
            raise ValueError(f"a schedule needs at least one step, and each once, got {dict(self.knots)}")
        for step, factor in self.knots:
            if step < 0 or not math.isfinite(factor) or factor < 0:
                raise ValueError(f"a schedule maps steps from 0 to finite factors of at least 0, got {step}: {factor:g}")

    @classmethod
    def parse(cls, entries: Mapping[Any, Any]) -> Schedule:
        """A schedule from {step: factor} as YAML or JSON give it (keys may be text). Raises: ValueError."""
        if not isinstance(entries, Mapping):
            raise ValueError(f"a schedule must map steps to factors, such as {{0: 1.0, 200: 0.2}}, got {entries!r}")
        return cls(tuple(sorted((_step(key), _factor(key, value)) for key, value in entries.items())))

    def factor(self, step: int) -> float:
        """The factor at a step."""
        steps, factors = zip(*self.knots, strict=True)
        return float(np.interp(step, steps, factors))


def _step(key: Any) -> int:
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    if isinstance(key, str) and key.isdecimal():
        return int(key)
    raise ValueError(f"the steps of a schedule must be whole numbers from 0, got {key!r}")


def _factor(key: Any, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the factor of a schedule at step {key} must be a number, got {value!r}")
    return float(value)
