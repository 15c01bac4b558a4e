"""Run folders as what a comparison needs: held-out scores prompt by prompt, and what time and images they had cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from xomni_rl.experiments.ablation import statistics
from xomni_rl.experiments.ablation.statistics import Estimate
from xomni_rl.experiments.report.data import (
    PREFERRED_HEADLINES,
    ReportError,
    lower_is_better,
    read_json,
    read_metrics,
    read_yaml,
    step_files,
)

AXES = ("step", "seconds", "samples")
"""What a curve may be drawn against: training steps, seconds of training, images generated for training."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        config, manifest, summary: its records; {} where a file is missing.
        metrics: `metrics.jsonl`, indexed by step.
        tables: step of an evaluation → held-out scores, indexed by prompt and index, one column per component and metric.
        lower_is_better: components whose good calibration image scored below the worthless one.
    """

    folder: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: pd.DataFrame
    tables: Mapping[int, pd.DataFrame]
    lower_is_better: frozenset[str]

    @property
    def seed(self) -> Any:
        return self.config.get("seed", "unknown")

    @property
    def last(self) -> int:
        """Step of the last evaluation."""
        return max(self.tables)

    def training_seconds(self) -> pd.Series:
        """Seconds of training until the end of every step, held-out evaluation left out; NaN if they were not recorded."""
        parts = [name for name in self.metrics if str(name).startswith("time/") and name not in ("time/total", "time/heldout")]
        if not parts:
            return pd.Series(math.nan, index=self.metrics.index)
        return self.metrics[parts].sum(axis=1).cumsum()

    def seconds(self, step: int) -> float:
        """Seconds of training until the end of a step; NaN if the run did not record them."""
        if step == 0:
            return 0.0
        found = self.training_seconds()
        return float(found[found.index <= step].iloc[-1]) if (found.index <= step).any() else math.nan

    def samples(self, step: int) -> float:
        """Images generated for training until the end of a step.

        The run's own count, which has replaced groups and greedy images in it; without one, prompts × group size a step.
        """
        if "images" in self.metrics:
            return float(self.metrics["images"][self.metrics.index <= step].sum())
        trainer = self.config.get("trainer") or {}
        return float(step * trainer.get("prompts_per_step", math.nan) * trainer.get("group_size", math.nan))

    def at(self, axis: str, step: int) -> float:
        """Where a step lies on one of the `AXES`."""
        if axis == "step":
            return float(step)
        return self.seconds(step) if axis == "seconds" else self.samples(step)


@dataclass(frozen=True)
class Point:
    """One evaluation of a method.

    Attributes:
        at: axis → place on it, mean over the seeds.
        values: [S, P], seeds × held-out prompts.
    """

    at: Mapping[str, float]
    values: np.ndarray

    @cached_property
    def mean(self) -> Estimate:
        """With its 95 % interval; every curve is drawn several times."""
        return statistics.mean(self.values)


def load_run(folder: Path) -> Run:
    """The run in a folder.

    Raises: ReportError if it is no run folder, or has no two held-out evaluations to compare, or a file is damaged.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder")
    if not (folder / "config.yaml").exists():
        raise ReportError(f"{folder} is no run folder: it has no config.yaml")
    files = dict(step_files(folder / "heldout"))
    if len(files) < 2:
        raise ReportError(
            f"{folder} has {len(files)} held-out evaluations; before and after are needed "
            "(trainer.evaluate_every, prompts.heldout_count)"
        )
    return Run(
        folder=folder,
        config=read_yaml(folder / "config.yaml"),
        manifest=read_json(folder / "manifest.json"),
        summary=read_json(folder / "summary.json"),
        metrics=read_metrics(folder / "metrics.jsonl"),
        tables={step: heldout_table(path) for step, path in files.items()},
        lower_is_better=lower_is_better(read_json(folder / "reward_checks.json")),
    )


def heldout_table(path: Path) -> pd.DataFrame:
    """Held-out scores of one evaluation by prompt id, prompt and index, sorted; columns named without their prefix.

    Raises: ReportError for a file that cannot be read, or with two rows for one image.
    """
    try:
        names = [name for name in pq.read_schema(path).names if name.startswith(("metric_", "reward_"))]
        frame = pq.read_table(path, columns=["prompt_id", "prompt", "index", *names]).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise ReportError(f"{path} could not be read: {str(error).splitlines()[0]}") from error
    frame = frame.set_index(["prompt_id", "prompt", "index"]).sort_index()
    if frame.index.has_duplicates:
        raise ReportError(f"{path} has two rows for one prompt and index")
    frame = frame.rename(columns=lambda name: name.removeprefix("metric_").removeprefix("reward_")).astype("float64")
    return frame.loc[:, ~frame.columns.duplicated()]


def common_prompts(runs: Sequence[Run]) -> pd.Index:
    """The held-out images that every evaluation of every run has.

    Raises: ReportError naming two runs that share none.
    """
    shared = runs[0].tables[0 if 0 in runs[0].tables else runs[0].last].index
    for run in runs:
        for table in run.tables.values():
            shared, before = shared.intersection(table.index), shared
            if shared.empty:
                raise ReportError(
                    f"{runs[0].folder} and {run.folder} were evaluated on different prompts ({before[0][1]!r}, "
                    f"{table.index[0][1]!r}, …), so nothing can be paired"
                )
    return shared.sort_values()


def common_metrics(runs: Sequence[Run], wanted: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Metrics that all runs have, the OCR's accuracies first, and those that only some have.

    Raises: ReportError if they share none, or lack a wanted one.
    """
    columns = [list(table.columns) for run in runs for table in run.tables.values()]
    everywhere = [name for name in columns[0] if all(name in found for found in columns)]
    for name in wanted:
        if name not in everywhere:
            where = next(run.folder for run in runs for table in run.tables.values() if name not in table)
            raise ReportError(f"{where} has no held-out {name!r}; all runs have {', '.join(everywhere) or 'nothing in common'}")
    if not everywhere:
        raise ReportError("there is nothing to compare: the runs' held-out evaluations have no metric in common")
    ordered = [name for name in PREFERRED_HEADLINES if name in everywhere]
    ordered += [name for name in everywhere if name not in ordered]
    elsewhere = {name: None for found in columns for name in found if name not in everywhere}
    return list(wanted) or ordered, list(elsewhere)


def applicable(runs: Sequence[Run], metric: str, prompts: pd.Index) -> pd.Index:
    """The prompts that a metric applies to (is not NaN) in every evaluation of every run; may be empty."""
    kept = np.ones(len(prompts), dtype=bool)
    for run in runs:
        for table in run.tables.values():
            kept &= table.loc[prompts, metric].notna().to_numpy()
    return prompts[kept]


def curve(runs: Sequence[Run], metric: str, prompts: pd.Index) -> list[Point]:
    """The evaluations of one method's seeds: at every step that all of them evaluated, and last each run's own last one.

    Runs that stopped at different steps (a time limit) have their last evaluations together, at the mean of their places.
    """
    last = [run.last for run in runs]
    common = sorted(set.intersection(*(set(run.tables) for run in runs)))
    steps = [[step] * len(runs) for step in common if step < min(last)] + [last]
    return [
        Point(
            {axis: float(np.mean([run.at(axis, step) for run, step in zip(runs, chosen, strict=True)])) for axis in AXES},
            np.stack([run.tables[step].loc[prompts, metric].to_numpy() for run, step in zip(runs, chosen, strict=True)]),
        )
        for chosen in steps
    ]
