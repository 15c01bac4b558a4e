"""Means, interquartile means and probabilities of improvement of tables [seeds, prompts], with 95 % intervals.

An interval must cover what another seed and another choice of prompts may have done. So every resample draws whole seeds and
whole prompts with replacement, independently of each other, and the statistic is taken again (percentile bootstrap). Each
method is a stratum of its own: its seeds are drawn from its own seeds only, while the prompts drawn are the same for both
methods of a comparison.

Departs from Agarwal et al., who draw the seeds anew for every task: they train one agent per task, here one run answers all
prompts, and drawing them apart would hide a seed that went badly as a whole and give intervals much too narrow.

Source: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice", arXiv:2108.13264; Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
CONFIDENCE = 0.95
TRIM = 0.25
"""Share left out at each end by the interquartile mean."""
BATCH = 2_000_000
"""Most numbers of resampled tables in memory at a time."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; low ≤ value ≤ high."""

    value: float
    low: float
    high: float


def mean(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean of a table with its interval.

    Args:
        values: [S, P] float without NaN: seeds × prompts. A side of length 1 is not drawn from: with one seed the interval
            says what other prompts may have given, and nothing about another seed.
        seed: of the resampling.
        resamples: draws, at least 1.
    Raises: ValueError if the table is not 2-D, is empty or holds NaN or infinity.
    """
    table = _checked("values", values)
    seeds, prompts = _draws(table.shape, seed, resamples)
    drawn = np.einsum("bp,bp->b", seeds @ table, prompts) / table.size
    return _interval(float(table.mean()), drawn)


def interquartile_mean(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean of the middle half of all values of a table, with its interval.

    IQM = mean of the sorted values without ⌊n/4⌋ at either end, n = S·P.

    Of values that are 0 or 1 it is 0 where their mean is below a quarter and 1 where it is above three quarters.

    Args, Raises: as `mean`.
    Source: arXiv:2108.13264, section 4.3; `scipy.stats.trim_mean`.
    """
    table = _checked("values", values)
    flat = table.reshape(-1)
    order = np.argsort(flat, kind="stable")
    cut = int(TRIM * flat.size)
    seeds, prompts = _draws(table.shape, seed, resamples)

    def drawn(rows: slice) -> np.ndarray:
        """A resample is how often every value was drawn; what counts of a value is what lies inside [cut, n - cut]."""
        times = (seeds[rows, :, None] * prompts[rows, None, :]).reshape(-1, flat.size)[:, order]
        ranks = np.clip(np.cumsum(times, axis=1), cut, flat.size - cut)
        return np.asarray(np.diff(ranks, axis=1, prepend=cut) @ flat[order] / (flat.size - 2 * cut))

    return _interval(float(stats.trim_mean(flat, TRIM)), _in_batches(drawn, resamples, flat.size))


def probability_of_improvement(
    values: np.ndarray, baseline: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """How likely a random seed of one method beats a random seed of the other on a random prompt.

    P = mean over prompts and pairs of seeds of [x > y] + ½ [x = y]

    Args:
        values: [S, P] float without NaN, x; larger is better.
        baseline: [R, P] of the other method, y; column m is the same prompt in both.
        seed, resamples: as in `mean`.
    Raises: ValueError if a table is malformed or their prompts differ in number.
    Source: arXiv:2108.13264, appendix A.4 (average over tasks of the Mann-Whitney U statistic).
    """
    x, y = _checked("values", values), _checked("baseline", baseline)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"values and baseline must have the same prompts, got shapes {x.shape} and {y.shape}")
    wins = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])  # [S, R, P]
    rng = np.random.default_rng(seed)
    ours, theirs, prompts = (_counts(rng, size, resamples) for size in wins.shape)
    by_pair = wins.reshape(-1, wins.shape[2]) @ prompts.T
    drawn = np.einsum("bs,br,srb->b", ours, theirs, by_pair.reshape(*wins.shape[:2], resamples)) / wins.size
    return _interval(float(wins.mean()), drawn)


def first_reached(at: np.ndarray, scores: np.ndarray, target: float) -> float:
    """Where a curve first reaches a target, on straight lines between its points; infinity if it never does.

    Args:
        at: [E] float, ascending: seconds, images or steps of the evaluations.
        scores: [E] float; larger is better.
        target: the score to reach.
    Raises: ValueError if the shapes differ or there is no point.
    """
    if at.ndim != 1 or at.shape != scores.shape or not at.size:
        raise ValueError(f"at and scores must be of one length and not empty, got shapes {at.shape} and {scores.shape}")
    reached = np.flatnonzero(scores >= target)
    if not reached.size:
        return float("inf")
    after = int(reached[0])
    if after == 0:
        return float(at[0])
    share = (target - scores[after - 1]) / (scores[after] - scores[after - 1])
    return float(at[after - 1] + share * (at[after] - at[after - 1]))


def _checked(name: str, values: np.ndarray) -> np.ndarray:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
        raise ValueError(f"{name} must be finite [seeds, prompts], got shape {table.shape}")
    return table


def _draws(shape: tuple[int, ...], seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    seeds, prompts = (_counts(rng, size, resamples) for size in shape)
    return seeds, prompts


def _counts(rng: np.random.Generator, size: int, resamples: int) -> np.ndarray:
    """[B, size] float: how often each of `size` was drawn; every row sums to `size`."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    return rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)


def _in_batches(drawn: Callable[[slice], np.ndarray], resamples: int, size: int) -> np.ndarray:
    step = max(1, BATCH // size)
    return np.concatenate([drawn(slice(start, start + step)) for start in range(0, resamples, step)])


def _interval(value: float, drawn: np.ndarray) -> Estimate:
    """Percentiles of the resamples; widened to the value itself, which few and lumpy draws may leave out."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value))
