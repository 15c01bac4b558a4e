"""From raw component scores to what is trained on: gates, normalisation, the weighted average. Plain numpy."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NORMALISATIONS = ("none", "batch", "group")
EPSILON = 1e-4
"""Added to the standard deviation when normalising, in units of the normalised score."""

_GATE = re.compile(r"\s*([\w.-]+)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_COMPARE: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
}


@dataclass(frozen=True)
class Gate:
    """`component` counts only where `by` compares with `threshold`; elsewhere it gets its floor."""

    component: str
    by: str
    comparison: str
    threshold: float

    def is_open(self, scores: np.ndarray) -> np.ndarray:
        """bool [N] from raw scores [N]; open where the gating component does not apply (NaN)."""
        return np.isnan(scores) | _COMPARE[self.comparison](scores, self.threshold)


def parse_gate(component: str, rule: str) -> Gate:
    """A gate from "OTHER > 0.2" (also >=, <, <=). Raises: ValueError for another form."""
    match = _GATE.fullmatch(rule)
    if match is None:
        raise ValueError(f'gate of "{component}" must read like "clip > 0.2" (>, >=, < or <=), got "{rule}"')
    by, comparison, threshold = match.groups()
    return Gate(component, by, comparison, float(threshold))


def normalise_components(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(x − mean) / (std + EPSILON) of each component over each group's applicable samples.

    The deviation has N − 1 below (torch's and TRL's default); one applicable sample, and equal ones, become 0.

    Args:
        values: float [N, K]; NaN = not applicable, kept.
        group: int [N].
    Returns: float32 [N, K].
    Raises: ValueError if the shapes differ.
    Source: group normalisation per component is GDPO's, arXiv:2601.05242. Departs from it: its closing normalisation of
        the summed advantages over the batch belongs to the advantage function.
    """
    if values.ndim != 2 or group.shape != values.shape[:1]:
        raise ValueError(f"expected values [N, K] and group [N], got {list(values.shape)} and {list(group.shape)}")
    normalised = np.full(values.shape, np.nan, dtype=np.float32)
    for label in np.unique(group):
        for column in range(values.shape[1]):
            rows = np.flatnonzero((group == label) & ~np.isnan(values[:, column]))
            scores = values[rows, column].astype(np.float64)
            if len(rows):
                deviation = scores.std(ddof=1) if len(rows) > 1 else 0.0
                normalised[rows, column] = (scores - scores.mean()) / (deviation + EPSILON)
    return normalised


def weighted_average(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ w·x / Σ |w| over the applicable components with a weight; NaN where there is none.

    Args:
        values: float [N, K]; NaN = not applicable.
        weights: float [K]; negative = a penalty, 0 = logged only.
    Returns: float32 [N].
    """
    present = ~np.isnan(values) & (weights != 0)
    total = (present * np.abs(weights)).sum(axis=1, dtype=np.float64)
    mass = (np.where(present, values, 0.0) * weights).sum(axis=1, dtype=np.float64)
    return np.divide(mass, total, out=np.full(len(values), np.nan), where=total > 0).astype(np.float32)
