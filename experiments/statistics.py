"""Means and paired differences of scores with 95 % bootstrap intervals, whatever made the scores.

A value that is NaN (not applicable, failed) takes part in nothing. Values that belong together, such as several images of one
prompt, are drawn together: the interval is to say what other prompts may have given, and images of one prompt are alike.

Tables of several training seeds are resampled by `ablation/statistics.py`, which draws seeds as well.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 (percentiles) and 8.6 (drawing clusters).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
BATCH = 1_000_000
"""Most numbers drawn at a time, which bounds the memory."""


class MeanInterval(NamedTuple):
    """A mean and its 95 % interval; low ≤ mean ≤ high. NaN where there is nothing to tell it from."""

    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """The mean of a - b with its 95 % interval, and how likely it is above 0, in [0, 1]."""

    difference: float
    low: float
    high: float
    probability_better: float


def mean_interval(
    values: np.ndarray | Sequence[float], seed: int = 0, *, clusters: Sequence[Any] | np.ndarray | None = None
) -> MeanInterval:
    """Mean of the values that are not NaN, with its percentile interval.

    Args:
        values: float [N].
        seed: of the resampling.
        clusters: [N] labels; values with one label are drawn together. None = each on its own.
    Returns: all NaN without a value; low and high NaN with fewer than two clusters, which say nothing about others.
    Raises: ValueError for another shape, infinity, or labels of another number.
    """
    sums, counts = _clustered(_checked("values", values), clusters)
    if not counts.size:
        return MeanInterval(np.nan, np.nan, np.nan)
    mean = float(sums.sum() / counts.sum())
    return MeanInterval(mean, *_percentiles(mean, _drawn_means(sums, counts, seed)))


def paired_difference(
    a: np.ndarray | Sequence[float],
    b: np.ndarray | Sequence[float],
    seed: int = 0,
    *,
    clusters: Sequence[Any] | np.ndarray | None = None,
) -> PairedDifference:
    """Mean of a - b over the pairs in which neither is NaN, with its interval and the probability that it is above 0.

    P = share of resampled means > 0 + ½ share of those = 0

    Args:
        a, b: float [N]; element n of both belongs to the same prompt. Larger is better.
        seed, clusters: as in `mean_interval`.
    Returns: all NaN without a pair; only the difference with fewer than two clusters.
    Raises: ValueError for another shape, infinity, or lengths that differ.
    """
    first, second = _checked("a", a), _checked("b", b)
    if first.shape != second.shape:
        raise ValueError(f"a and b must be pairs, got shapes {first.shape} and {second.shape}")
    sums, counts = _clustered(first - second, clusters)
    if not counts.size:
        return PairedDifference(np.nan, np.nan, np.nan, np.nan)
    difference = float(sums.sum() / counts.sum())
    drawn = _drawn_means(sums, counts, seed)
    better = float(((drawn > 0) + 0.5 * (drawn == 0)).mean()) if drawn.size else np.nan
    return PairedDifference(difference, *_percentiles(difference, drawn), better)


def _checked(name: str, values: np.ndarray | Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or np.isinf(array).any():
        raise ValueError(
            f"{name} must be [N] numbers or NaN, got shape {array.shape}{', infinity among them' * (array.ndim == 1)}"
        )
    return array


def _clustered(values: np.ndarray, clusters: Sequence[Any] | np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(sum [C], count [C]) of the values of each cluster that has one."""
    kept = ~np.isnan(values)
    if clusters is None:
        return values[kept], np.ones(int(kept.sum()))
    labels = np.asarray(clusters)
    if labels.shape != values.shape:
        raise ValueError(f"clusters must be one label per value, got shapes {labels.shape} and {values.shape}")
    _, index = np.unique(labels[kept], return_inverse=True)
    return np.bincount(index, weights=values[kept]), np.bincount(index).astype(np.float64)


def _drawn_means(sums: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """[RESAMPLES] means of as many clusters, drawn with replacement; [0] for fewer than two clusters."""
    size = len(sums)
    if size < 2:
        return np.zeros(0)
    rng = np.random.default_rng(seed)
    step = max(1, BATCH // size)
    means = []
    for start in range(0, RESAMPLES, step):
        drawn = rng.integers(size, size=(min(step, RESAMPLES - start), size), dtype=np.uint32)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def _percentiles(value: float, drawn: np.ndarray) -> tuple[float, float]:
    """Ends of the interval; widened to the value itself, which few and lumpy draws may leave out."""
    if not drawn.size:
        return np.nan, np.nan
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return min(float(low), value), max(float(high), value)
