"""Several runs (seeds) as one table: held-out figures before, after and gained, with 95 % intervals.

`python -m xomni_rl.experiments.report.results runs/seed0 runs/seed1 runs/seed2 --out docs/results/ocr_grpo`
writes ocr_grpo.md, .csv, .png and .svg. `--group NAME FOLDER FOLDER …`, given once per method, compares methods instead.

An interval covers both what the seed and what the choice of prompts may have done: seeds and prompts are drawn with
replacement, independently of each other, and the mean is taken again (percentile bootstrap, `scipy.stats.bootstrap`).
"""

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy import stats

from xomni_rl.experiments.report.data import PREFERRED_HEADLINES, ReportError, step_files
from xomni_rl.experiments.report.provenance import provenance, warnings

RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Row:
    """One metric of one method over its seeds."""

    label: str
    metric: str
    seeds: int
    prompts: int
    before: Estimate
    after: Estimate
    gain: Estimate


def bootstrap_mean(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean of a [seeds, prompts] table with a 95 % interval over both.

    Args:
        values: [S, P] float, no NaN; rows are seeds, columns held-out samples. With S = 1 only prompts are drawn.
        seed: of the resampling.
        resamples: number of draws.
    Raises: ValueError if the table is not 2-D, is empty or holds NaN.
    Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2), 2007; percentile interval.
    """
    if values.ndim != 2 or 0 in values.shape or np.isnan(values).any():
        raise ValueError(f"values must be [seeds, prompts] without NaN, got shape {values.shape}")
    factors = [np.arange(size) for size in values.shape if size > 1]
    mean = float(values.mean())
    if not factors or np.ptp(values) == 0:
        return Estimate(mean, mean, mean)
    table = values if len(factors) == 2 else values.reshape(-1)

    def statistic(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        if len(drawn) == 1:
            return table[drawn[0]].mean(axis=axis)
        return table[drawn[0][..., :, None], drawn[1][..., None, :]].mean(axis=(-2, -1))

    found = stats.bootstrap(
        factors, statistic, n_resamples=resamples, method="percentile", vectorized=True, rng=seed, batch=200
    )
    return Estimate(mean, float(found.confidence_interval.low), float(found.confidence_interval.high))


def heldout_table(path: Path) -> pd.DataFrame:
    """Per-sample held-out figures of one evaluation, indexed by prompt and index; columns named without prefix."""
    names = [name for name in pq.read_schema(path).names if name.startswith(("metric_", "reward_"))]
    frame = pq.read_table(path, columns=["prompt_id", "index", *names]).to_pandas()
    frame = frame.set_index(["prompt_id", "index"]).sort_index()
    return frame.rename(columns=lambda name: name.removeprefix("metric_").removeprefix("reward_"))


def heldout_curve(folders: Sequence[Path], metric: str) -> list[tuple[float, np.ndarray]]:
    """(step, [S, P] values) at every step that all runs evaluated, and last each run's last evaluation.

    Runs that stopped at different steps (a time limit) have their last evaluations together at the mean step.

    Raises: ReportError when a run has fewer than two evaluations, or the runs' numbers of samples differ.
    """
    files = [dict(step_files(folder / "heldout")) for folder in folders]
    for folder, found in zip(folders, files, strict=True):
        if len(found) < 2:
            raise ReportError(f"{folder} has {len(found)} held-out evaluations; before and after are needed")
    last = [max(found) for found in files]
    common = sorted(set.intersection(*(set(found) for found in files)))
    common = [step for step in common if step < min(last)]
    points = [(float(step), [found[step] for found in files]) for step in common]
    points.append((float(np.mean(last)), [found[step] for found, step in zip(files, last, strict=True)]))
    return [(step, _matrix(paths, metric)) for step, paths in points]


def results_table(groups: Mapping[str, Sequence[Path]], metrics: Sequence[str] = PREFERRED_HEADLINES) -> list[Row]:
    """One row per method and metric.

    Args:
        groups: method → its run folders, one per seed.
        metrics: held-out metrics or reward components, such as "ocr_exact".
    Raises: ReportError for a run without before and after, an unknown metric, or unequal numbers of samples.
    """
    rows = []
    for label, folders in groups.items():
        for metric in metrics:
            curve = heldout_curve(folders, metric)
            before, after = curve[0][1], curve[-1][1]
            estimates = (bootstrap_mean(before), bootstrap_mean(after), bootstrap_mean(after - before))
            rows.append(Row(label, metric, before.shape[0], before.shape[1], *estimates))
    return rows


def markdown_table(rows: Sequence[Row]) -> str:
    """The table in Markdown; brackets are 95 % intervals."""
    lines = [
        "| run | metric | seeds | held-out images | before | after | gain |",
        "|---|---|---:|---:|---|---|---|",
    ]
    lines += [
        f"| {r.label} | {r.metric} | {r.seeds} | {r.prompts} | {r.before} | {r.after} | {r.gain.mean:+.3f} "
        f"[{r.gain.low:+.3f}, {r.gain.high:+.3f}] |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def csv_table(rows: Sequence[Row]) -> str:
    """The table as CSV, one column per bound."""
    buffer = io.StringIO()
    parts = [f"{name}{bound}" for name in ("before", "after", "gain") for bound in ("", "_low", "_high")]
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "metric", "seeds", "prompts", *parts])
    for row in rows:
        numbers = [f"{n:.6f}" for e in (row.before, row.after, row.gain) for n in (e.mean, e.low, e.high)]
        writer.writerow([row.label, row.metric, row.seeds, row.prompts, *numbers])
    return buffer.getvalue()


def write_results(groups: Mapping[str, Sequence[Path]], out: Path, metrics: Sequence[str] = PREFERRED_HEADLINES) -> list[Path]:
    """Writes `<out>.md`, `.csv`, `.png` and `.svg`; returns the paths. Raises: as `results_table`."""
    from xomni_rl.experiments.report.curves import curve_figure, save

    markdown = markdown_table(rows := results_table(groups, metrics))
    markdown += "\nRuns:\n\n" + "\n".join(provenance(groups)) + "\n"
    markdown += "".join(f"\n**Beware:** {warning}.\n" for warning in warnings(groups))
    out.parent.mkdir(parents=True, exist_ok=True)
    texts = {out.with_name(out.name + ".md"): markdown, out.with_name(out.name + ".csv"): csv_table(rows)}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return [*texts, *save(curve_figure(groups, metrics), out)]


def parse_groups(folders: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, list[Path]]:
    """The command line's folders, or its groups (a name and folders each), as method → folders.

    Raises: ReportError when both or neither are given, a group has no folder, or a name comes twice.
    """
    if bool(folders) == bool(groups):
        raise ReportError("give either run folders or --group NAME FOLDER FOLDER …")
    if folders:
        return {"all seeds": [Path(folder) for folder in folders]}
    for name, *found in groups:
        if not found:
            raise ReportError(f"the group {name} has no run folder: --group NAME FOLDER FOLDER …")
    named = {name: [Path(folder) for folder in found] for name, *found in groups}
    if len(named) < len(groups):
        raise ReportError("two groups have the same name")
    return named


def main(arguments: list[str] | None = None) -> int:
    """The command of the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m xomni_rl.experiments.report.results")
    parser.add_argument("folders", nargs="*", help="run folders, one per seed")
    group_help = "a method's name and its run folders; may be repeated"
    parser.add_argument("--group", action="append", nargs="+", default=[], metavar=("NAME", "FOLDER"), help=group_help)
    parser.add_argument("--metric", action="append", default=[], help="default: ocr_exact and ocr_char")
    parser.add_argument("--out", type=Path, required=True, help="path without suffix")
    options = parser.parse_args(arguments)
    try:
        groups = parse_groups(options.folders, options.group)
        paths = write_results(groups, options.out, options.metric or PREFERRED_HEADLINES)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(paths[0].read_text(encoding="utf-8"))
    print("\n".join(str(path) for path in paths))
    return 0


def _matrix(paths: Sequence[Path], metric: str) -> np.ndarray:
    """[S, P] values of one metric; columns are the same samples where the runs share their prompts.

    Samples where the metric is not applicable in any run (NaN) are left out. Runs with different held-out prompts are
    stacked by position, which the bootstrap treats alike: positions are exchangeable then.
    """
    tables = [heldout_table(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if metric not in table:
            raise ReportError(f"{path} has no {metric!r}; it has {', '.join(table.columns)}")
    counts = sorted({len(table) for table in tables})
    if len(counts) > 1:
        raise ReportError(f"the runs' held-out sets differ in size: {counts}")
    values = np.stack([table[metric].to_numpy(dtype="float64") for table in tables])
    applicable = ~np.isnan(values).any(axis=0)
    if not applicable.any():
        raise ReportError(f"{metric!r} applies to no held-out sample of {paths[0].parent.parent}")
    return values[:, applicable]


if __name__ == "__main__":
    sys.exit(main())
