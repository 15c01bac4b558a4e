"""Several methods' runs as figures: scores before, after and gained, improvement over the first method, cost of a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from xomni_rl.experiments.ablation import statistics
from xomni_rl.experiments.ablation.fairness import Fairness, check_fairness
from xomni_rl.experiments.ablation.runs import Point, Run, applicable, common_metrics, common_prompts, curve, load_run
from xomni_rl.experiments.ablation.statistics import Estimate
from xomni_rl.experiments.report.data import ReportError

SHARE_OF_GAIN = 0.9
"""Of the first method's mean gain: the default target."""


@dataclass(frozen=True)
class Row:
    """One held-out metric of one method over its seeds.

    Attributes:
        seeds, prompts: how many the figures are over.
        before, after, gain: means; the gain is after minus before of the same seed and prompt.
        iqm, iqm_before, iqm_gain: interquartile means of the same tables.
        improvement: probability that this method beats the first one; None for the first itself.
        best: whether no method's mean is better.
    """

    name: str
    metric: str
    seeds: int
    prompts: int
    before: Estimate
    after: Estimate
    gain: Estimate
    iqm_before: Estimate
    iqm: Estimate
    iqm_gain: Estimate
    improvement: Estimate | None
    best: bool


@dataclass(frozen=True)
class Target:
    """A held-out score to reach: `metric` at `score` or better."""

    metric: str
    score: float


@dataclass(frozen=True)
class TargetRow:
    """What a target cost one method.

    Attributes:
        seconds, samples: per seed, of training until it was reached; infinity = it was not.
    """

    name: str
    target: Target
    seconds: tuple[float, ...]
    samples: tuple[float, ...]

    @property
    def reached(self) -> int:
        return int(np.isfinite(self.samples).sum())


@dataclass(frozen=True)
class Comparison:
    """Everything the tables, curves, grids and the page show.

    Attributes:
        methods: method → its runs, one per seed; the first is what the others are compared with.
        metrics: held-out metrics that all runs have, in the order shown.
        same: metric → those after it whose every value is the same; they have rows, and are not shown twice.
        lower_is_better: those of them where less is more.
        curves: (method, metric) → its evaluations.
        prompts: the held-out images that all evaluations have: (id, text, index).
        rows: one per metric and method; targets: one per target and method.
        notes: what a reader of the table should know, one sentence each; cost_notes: of the targets' costs.
    """

    methods: Mapping[str, Sequence[Run]]
    metrics: Sequence[str]
    same: Mapping[str, Sequence[str]]
    lower_is_better: frozenset[str]
    curves: Mapping[tuple[str, str], Sequence[Point]]
    prompts: pd.Index
    rows: Sequence[Row]
    targets: Sequence[TargetRow]
    fairness: Fairness
    notes: Sequence[str]
    cost_notes: Sequence[str]

    @property
    def first(self) -> str:
        return next(iter(self.methods))

    @property
    def compared(self) -> bool:
        """Whether there is another method than the first."""
        return len(self.methods) > 1

    @property
    def shown(self) -> list[str]:
        """The metrics without those that repeat another."""
        repeated = {name for names in self.same.values() for name in names}
        return [metric for metric in self.metrics if metric not in repeated]

    @property
    def yes_or_no(self) -> list[str]:
        """Metrics shown whose every value is 0 or 1."""
        return [metric for metric in self.shown if all(np.isin(v, (0, 1)).all() for v in values_of(self.curves, metric))]

    @property
    def saturated(self) -> list[str]:
        """Metrics shown, not of the yes-or-no kind, whose IQM stands at the end of its scale for some method."""
        ends = {row.metric for row in self.rows if row.iqm.low == row.iqm.high and row.after.low < row.after.high}
        return [metric for metric in self.shown if metric in ends and metric not in self.yes_or_no]

    def rows_of(self, metric: str) -> list[Row]:
        """One per method."""
        return [row for row in self.rows if row.metric == metric]

    def title(self, metric: str) -> str:
        """The metric, with those that are the same: "ocr_char = ocr"."""
        return " = ".join([metric, *self.same.get(metric, ())])


def compare(
    groups: Mapping[str, Sequence[Path]],
    *,
    metrics: Sequence[str] = (),
    targets: Sequence[Target] = (),
    notes: Sequence[str] = (),
    cost_notes: Sequence[str] = (),
) -> Comparison:
    """Reads run folders and works out every figure.

    Args:
        groups: method → its run folders, one per seed; the first method is the baseline.
        metrics: held-out metrics to show; none = all that the runs have in common.
        targets: scores to reach; none = 90 % of the first method's mean gain on the first metric.
        notes, cost_notes: more to say under the tables.
    Raises: ReportError in one sentence if a folder is no run, a run has no two held-out evaluations, the runs share no
        prompts or no metric, or there is no run at all.
    """
    methods = {name: [load_run(folder) for folder in folders] for name, folders in groups.items()}
    runs = [run for found in methods.values() for run in found]
    if not runs:
        raise ReportError("there is nothing to compare: give one or more run folders")
    prompts = common_prompts(runs)
    names, elsewhere = common_metrics(runs, metrics)
    kept = {metric: applicable(runs, metric, prompts) for metric in names}
    names = [metric for metric in names if len(kept[metric])]
    if not names:
        raise ReportError("there is nothing to compare: no metric applies to any held-out prompt in all runs")
    lower = frozenset(names) & frozenset[str]().union(*(run.lower_is_better for run in runs))
    curves = {(name, m): curve(found, m, kept[m]) for name, found in methods.items() for m in names}
    rows = [row for metric in names for row in _rows(methods, metric, curves, metric in lower)]
    wanted = list(targets) or _default_target(rows[0], names[0] in lower)
    return Comparison(
        methods=methods,
        metrics=names,
        same=_same(curves, names),
        lower_is_better=lower,
        curves=curves,
        prompts=prompts,
        rows=rows,
        targets=[_target_row(name, target, found, prompts, lower) for target in wanted for name, found in methods.items()],
        fairness=check_fairness(methods),
        notes=[*notes, *_notes(runs, methods, prompts, names, kept, elsewhere, wanted)],
        cost_notes=list(cost_notes),
    )


def values_of(curves: Mapping[tuple[str, str], Sequence[Point]], metric: str) -> list[np.ndarray]:
    """The tables [S, P] of all evaluations of all methods, in order."""
    return [point.values for (_, name), points in curves.items() if name == metric for point in points]


def _same(curves: Mapping[tuple[str, str], Sequence[Point]], metrics: Sequence[str]) -> dict[str, list[str]]:
    """Metric → later ones that are equal to it in every evaluation, prompt by prompt."""
    same: dict[str, list[str]] = {}
    for name in metrics:
        values = values_of(curves, name)
        twin = next((first for first in same if _equal(values_of(curves, first), values)), None)
        if twin is None:
            same[name] = []
        else:
            same[twin].append(name)
    return {name: twins for name, twins in same.items() if twins}


def _equal(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    return all(a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(one, other, strict=True))


def _rows(
    methods: Mapping[str, Sequence[Run]], metric: str, curves: Mapping[tuple[str, str], Sequence[Point]], lower: bool
) -> list[Row]:
    sign = -1 if lower else 1
    points = {name: (curves[name, metric][0], curves[name, metric][-1]) for name in methods}
    tables = {name: (first.values, last.values) for name, (first, last) in points.items()}
    baseline = next(iter(tables))
    best = max(sign * after.mean() for _, after in tables.values())
    return [
        Row(
            name=name,
            metric=metric,
            seeds=after.shape[0],
            prompts=after.shape[1],
            before=points[name][0].mean,
            after=points[name][1].mean,
            gain=statistics.mean(after - before),
            iqm_before=statistics.interquartile_mean(before),
            iqm=statistics.interquartile_mean(after),
            iqm_gain=statistics.interquartile_mean(after - before),
            improvement=None
            if name == baseline
            else statistics.probability_of_improvement(sign * after, sign * tables[baseline][1]),
            best=bool(sign * after.mean() >= best),
        )
        for name, (before, after) in tables.items()
    ]


def _default_target(first: Row, lower: bool) -> list[Target]:
    """90 % of the way of the first method's mean gain; none if it gained nothing."""
    if (-first.gain.value if lower else first.gain.value) <= 0:
        return []
    return [Target(first.metric, first.before.value + SHARE_OF_GAIN * first.gain.value)]


def _target_row(name: str, target: Target, runs: Sequence[Run], prompts: pd.Index, lower: frozenset[str]) -> TargetRow:
    """Each seed's own curve over its own evaluations. Raises: ReportError if the runs lack the target's metric."""
    for run in runs:
        if not all(target.metric in table for table in run.tables.values()):
            raise ReportError(f"{run.folder} has no held-out {target.metric!r}, which a target was set for")
    sign = -1 if target.metric in lower else 1

    def reached(run: Run, axis: str) -> float:
        steps = sorted(run.tables)
        scores = np.array([sign * run.tables[step].loc[prompts, target.metric].mean() for step in steps])
        at = np.array([run.at(axis, step) for step in steps])
        return statistics.first_reached(at, scores, sign * target.score)

    seconds, samples = (tuple(reached(run, axis) for run in runs) for axis in ("seconds", "samples"))
    return TargetRow(name, target, seconds, samples)


def _notes(
    runs: Sequence[Run],
    methods: Mapping[str, Sequence[Run]],
    prompts: pd.Index,
    metrics: Sequence[str],
    kept: Mapping[str, pd.Index],
    elsewhere: Sequence[str],
    targets: Sequence[Target],
) -> list[str]:
    """What the figures leave out."""
    notes = []
    seeds = {len(found) for found in methods.values()}
    if min(seeds) == 1:
        notes.append("With one seed an interval covers the choice of prompts only and says nothing about another seed")
    elif min(seeds) < 5:
        notes.append(f"{min(seeds)} seeds say little about others: an interval over so few is rather too narrow")
    most = max(len(table) for run in runs for table in run.tables.values())
    if len(prompts) < most:
        notes.append(f"The runs share {len(prompts)} of up to {most} held-out images; only those count")
    for metric in metrics:
        if len(kept[metric]) < len(prompts):
            notes.append(f"{metric} applies to {len(kept[metric])} of {len(prompts)} held-out images in all runs")
    if elsewhere:
        notes.append(f"Not in every run, and left out: {', '.join(elsewhere)}")
    if not targets:
        first = next(iter(methods))
        notes.append(f"{first} gained nothing on {metrics[0]}, so there is no default target; set one with --target")
    return notes
