"""One number out of many samples, with its interval: a mean of ratios of sums, resampled by prompt.

figure = mean over groups g of  Σ_{n in g} top_n / Σ_{n in g} bottom_n

A plain mean is one group with bottom 1; LongText-Bench's score is one group with the words matched over the words wanted;
GenEval's is the mean over its tasks; OneIG-Bench's text score is made of three such figures. Samples of one prompt are drawn
together, because images of one prompt are alike; prompts are drawn within their group, because the benchmark fixes how many of
each there are.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 8.6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xomni_rl.experiments.statistics import BATCH, CONFIDENCE, RESAMPLES, MeanInterval, PairedDifference

NOTHING = MeanInterval(np.nan, np.nan, np.nan)
Ratio = tuple[np.ndarray, np.ndarray]
"""(top, bottom), float [N] each; a sample in which any of them is NaN takes part in nothing."""
Combine = Callable[..., Any]
"""callable(the mean of ratios of each `Ratio`, float or [R]) -> the figure, likewise."""


def ratio_interval(
    top: np.ndarray, bottom: np.ndarray, clusters: Sequence[Any], groups: Sequence[Any] | None = None, seed: int = 0
) -> MeanInterval:
    """The figure with its 95 % percentile interval.

    Args:
        top, bottom: float [N]; a sample in which either is NaN takes part in nothing.
        clusters: [N] labels of what is drawn together: prompts.
        groups: [N] labels of what is averaged over; None = one group.
        seed: of the resampling.
    Returns: all NaN if nothing is there or a bottom is 0; low and high NaN where a group has fewer than two clusters.
    Raises: ValueError if lengths differ.
    """
    return combined_interval([(top, bottom)], _itself, clusters, groups, seed)


def combined_interval(
    ratios: Sequence[Ratio], combine: Combine, clusters: Sequence[Any], groups: Sequence[Any] | None = None, seed: int = 0
) -> MeanInterval:
    """What `combine` makes of several ratios, with the 95 % percentile interval over draws of all of them together.

    Args and Returns: as in `ratio_interval`.
    Raises: ValueError if lengths differ.
    """
    sums = _group_sums(_stacked(ratios), clusters, groups)
    value = _combined(np.stack([each.sum(axis=0) for each in sums]), combine) if sums else np.nan
    if np.isnan(value):
        return NOTHING
    return MeanInterval(float(value), *_ends(float(value), _combined(_drawn(sums, seed), combine)))


def ratio_difference(
    first: tuple[np.ndarray, np.ndarray],
    second: tuple[np.ndarray, np.ndarray],
    clusters: Sequence[Any],
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """The figure of `first` less that of `second` on the samples that both have, drawn together.

    P = share of resampled differences > 0 + ½ share of those = 0

    Args:
        first, second: (top, bottom), float [N] each; element n of all belongs to the same prompt. Larger is better.
        clusters, groups, seed: as in `ratio_interval`.
    Returns: all NaN without a pair; only the difference where a group has fewer than two clusters.
    """
    return combined_difference([first], [second], _itself, clusters, groups, seed)


def combined_difference(
    first: Sequence[Ratio],
    second: Sequence[Ratio],
    combine: Combine,
    clusters: Sequence[Any],
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> PairedDifference:
    """`ratio_difference` of what `combine` makes of the ratios of `first` and of as many of `second`."""
    sums = _group_sums(_stacked([*first, *second]), clusters, groups)
    if not sums:
        return PairedDifference(np.nan, np.nan, np.nan, np.nan)

    def difference(totals: np.ndarray) -> Any:
        return _combined(totals[..., : 2 * len(first)], combine) - _combined(totals[..., 2 * len(first) :], combine)

    value = float(difference(np.stack([each.sum(axis=0) for each in sums])))
    if np.isnan(value):
        return PairedDifference(np.nan, np.nan, np.nan, np.nan)
    drawn = difference(_drawn(sums, seed))
    drawn = drawn[~np.isnan(drawn)]
    better = float(((drawn > 0) + 0.5 * (drawn == 0)).mean()) if drawn.size else np.nan
    return PairedDifference(value, *_ends(value, drawn), better)


def _itself(value: Any) -> Any:
    return value


def _stacked(ratios: Sequence[Ratio]) -> np.ndarray:
    """[N, 2P]: top and bottom of each."""
    return np.stack([column for ratio in ratios for column in ratio], axis=1)


def _combined(sums: np.ndarray, combine: Combine) -> Any:
    """[…, G, 2P] sums -> […] what is made of the P means of ratios."""
    return combine(*(_ratio(sums[..., start : start + 2]) for start in range(0, sums.shape[-1], 2)))


def _ratio(sums: np.ndarray) -> Any:
    """[…, G, 2] sums of top and bottom -> […] mean over groups of their ratios; NaN where a bottom is 0."""
    bottom = np.where(sums[..., 1] == 0, np.nan, sums[..., 1])
    return (sums[..., 0] / bottom).mean(axis=-1)


def _group_sums(values: np.ndarray, clusters: Sequence[Any], groups: Sequence[Any] | None) -> list[np.ndarray]:
    """Per group the sums [C, K] of each of its clusters, over the samples in which nothing is NaN."""
    values = values.astype(np.float64)
    names = np.asarray(clusters, dtype=str)
    parts = np.zeros(len(values), dtype=str) if groups is None else np.asarray(groups, dtype=str)
    if not len(values) == len(names) == len(parts):
        raise ValueError(f"one cluster and group per sample are needed, got {len(values)}, {len(names)} and {len(parts)}")
    whole = ~np.isnan(values).any(axis=1)
    found = []
    for part in np.unique(parts[whole]):
        rows = whole & (parts == part)
        _, index = np.unique(names[rows], return_inverse=True)
        found.append(np.stack([np.bincount(index, weights=column) for column in values[rows].T], axis=1))
    return found


def _drawn(sums: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """[R, G, K] sums over as many clusters as each group has, drawn with replacement; R = 0 if a group has fewer than two."""
    if any(len(each) < 2 for each in sums):
        return np.zeros((0, len(sums), sums[0].shape[1]))
    rng = np.random.default_rng(seed)
    drawn = np.empty((RESAMPLES, len(sums), sums[0].shape[1]))
    for group, each in enumerate(sums):
        size = len(each)
        step = max(1, BATCH // size)
        for start in range(0, RESAMPLES, step):
            chosen = rng.integers(size, size=(min(step, RESAMPLES - start), size), dtype=np.uint32)
            drawn[start : start + len(chosen), group] = each[chosen].sum(axis=1)
    return drawn


def _ends(value: float, drawn: np.ndarray) -> tuple[float, float]:
    """Ends of the interval; widened to the value itself, which few and lumpy draws may leave out."""
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return np.nan, np.nan
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return min(float(low), value), max(float(high), value)
