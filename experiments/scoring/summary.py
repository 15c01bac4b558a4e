"""What a table of scores says: means with intervals and histograms, models against each other, what was not scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

import numpy as np

from xomni_rl.experiments.scoring.matching import Item
from xomni_rl.experiments.scoring.parts import Parts
from xomni_rl.experiments.scoring.scorers import Scored
from xomni_rl.experiments.scoring.table import Columns
from xomni_rl.experiments.statistics import mean_interval, paired_difference

BINS = 12
LISTED = 20
"""Most problems that are listed one by one; the table's column `error` has all."""


@dataclass(frozen=True)
class RewardSummary:
    """One column of numbers of one model.

    Args:
        mean: over the scored images; NaN if there is none.
        low, high: 95 % bootstrap interval of the mean over prompts; NaN below two prompts.
        scored, not_applicable, failed: how many images; a file that is no image has failed.
        lowest, highest: of the scores; NaN if there is none.
        histogram: images in `BINS` equal parts of [lowest, highest].
    """

    mean: float
    low: float
    high: float
    scored: int
    not_applicable: int
    failed: int
    lowest: float = np.nan
    highest: float = np.nan
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two models on the same prompts: their mean scores of each prompt, a - b.

    Args:
        a, b: models.
        column: of numbers.
        difference, low, high: mean of a - b over prompts that both have a score for, and its 95 % bootstrap interval.
        probability_better: that a is the better one, in [0, 1]; larger scores are better unless the reward says otherwise.
        prompts: how many.
    """

    a: str
    b: str
    column: str
    difference: float
    low: float
    high: float
    probability_better: float
    prompts: int


@dataclass
class Summary:
    """Everything that is said of a table.

    Args:
        rewards: (model, column) → its summary; the model is "" where there is one.
        comparisons: of every two models.
        unreadable: files that are no image.
        troubled: images with an error of any kind.
        failed: reward → images that it failed on, files that are no image among them.
        problems: "file: reason" of the first `LISTED` of them.
    """

    rewards: dict[tuple[str, str], RewardSummary] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    unreadable: int = 0
    troubled: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def summarise(
    items: Sequence[Item], parts: Parts, columns: Columns, higher_is_better: Mapping[str, bool], seed: int
) -> Summary:
    """The summary of all batches.

    Args:
        items: the images, in order.
        parts: their batches.
        columns: of the table.
        higher_is_better: reward → direction.
        seed: of the bootstraps.
    """
    names = [(reward, column) for reward, found in columns.figures.items() for column in found]
    scores = np.full((len(items), len(names)), np.nan)
    failed = {reward: np.zeros(len(items), dtype=bool) for reward in columns.figures}
    summary = Summary()
    start = 0
    for scored in parts.read():
        stop = start + len(scored.rows)
        summary.unreadable += sum(scored.unreadable)
        for offset, row in enumerate(scored.rows):
            scores[start + offset] = [np.nan if row.get(column) is None else row[column] for _, column in names]
            for reward in columns.figures if scored.unreadable[offset] else scored.failed[offset]:
                failed[reward][start + offset] = True
        summary.troubled += sum(1 for row in scored.rows if row.get("error"))
        room = LISTED - len(summary.problems)
        summary.problems += islice(_problems(scored, items[start:stop]), room)
        start = stop
    summary.failed = {reward: int(found.sum()) for reward, found in failed.items()}
    models = list(dict.fromkeys(item.model for item in items))
    model_of = np.array([models.index(item.model) for item in items])
    prompt_of = _positions([item.prompt.id for item in items])
    several = any(item.sample > 1 for item in items)
    for place, (reward, column) in enumerate(names):
        for index, model in enumerate(models):
            chosen = model_of == index
            clusters = prompt_of[chosen] if several else None
            summary.rewards[model, column] = summary_of(
                scores[chosen, place], int(failed[reward][chosen].sum()), seed, clusters
            )
        means = [_prompt_means(scores[:, place], model_of == index, prompt_of) for index in range(len(models))]
        sign = 1.0 if higher_is_better[reward] else -1.0
        for a, b in combinations(range(len(models)), 2):
            found = _compared(sign * means[a], sign * means[b], seed)
            summary.comparisons.append(Comparison(models[a], models[b], column, *_signed(found, sign)))
    return summary


def summary_of(scores: np.ndarray, failed: int, seed: int, clusters: Sequence[int] | np.ndarray | None = None) -> RewardSummary:
    """The summary of one column.

    Args:
        scores: float [N]; NaN = no score.
        failed: how many of those have none because the reward failed.
        seed: of the bootstrap.
        clusters: [N], which prompt each image is of; None = all different.
    """
    values = scores[~np.isnan(scores)].astype(np.float64)
    interval = mean_interval(scores, seed, clusters=clusters)
    rest = len(scores) - len(values) - failed
    if not len(values):
        return RewardSummary(*interval, 0, rest, failed)
    low, high = float(values.min()), float(values.max())
    histogram = np.histogram(values, bins=BINS, range=(low, high if high > low else low + 1))[0]
    return RewardSummary(*interval, len(values), rest, failed, low, high, tuple(int(count) for count in histogram))


def _problems(scored: Scored, items: Sequence[Item]) -> Iterator[str]:
    for item, row, unreadable in zip(items, scored.rows, scored.unreadable, strict=True):
        if row.get("error"):
            name = f"{item.model}/{item.name}" if item.model else item.name
            yield f"not scored: {row['error']}" if unreadable else f"{name}: {row['error']}"


def _positions(labels: Sequence[str]) -> np.ndarray:
    number: dict[str, int] = {}
    return np.array([number.setdefault(label, len(number)) for label in labels])


def _prompt_means(scores: np.ndarray, chosen: np.ndarray, prompt_of: np.ndarray) -> np.ndarray:
    """[P] a model's mean score of each prompt; NaN where it has none."""
    used = chosen & ~np.isnan(scores)
    size = int(prompt_of.max()) + 1
    sums = np.bincount(prompt_of[used], weights=scores[used], minlength=size)
    counts = np.bincount(prompt_of[used], minlength=size)
    return np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0)


def _compared(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, float, float, float, int]:
    return (*paired_difference(a, b, seed), int((~np.isnan(a - b)).sum()))


def _signed(found: tuple[float, float, float, float, int], sign: float) -> tuple[float, float, float, float, int]:
    """The difference in the column's own direction, the probability as it is."""
    difference, low, high, better, prompts = found
    low, high = (low, high) if sign > 0 else (-high, -low)
    return sign * difference, low, high, better, prompts
