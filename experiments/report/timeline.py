"""What a run's tables show over training: the same held-out prompts at several evaluations, advantages of several steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xomni_rl.experiments.report.data import RunData, Sample, read_samples, step_files

T = TypeVar("T")
ROWS, COLUMNS = 12, 6
"""Most prompts and evaluations of the grid of pictures."""
TABLES, BINS = 40, 31
"""Most steps whose advantages are read, and bins of their histograms."""


@dataclass(frozen=True)
class GridRow:
    """One held-out prompt with its picture at every step of the grid; None where there is none."""

    prompt: str
    samples: list[Sample | None]


@dataclass(frozen=True)
class Grid:
    """The same prompts from the same random streams at several evaluations.

    Attributes:
        steps: [S] of the evaluations, ascending.
        rows: the first prompts of the fixed held-out grid, not chosen.
    """

    steps: list[int]
    rows: list[GridRow]


@dataclass(frozen=True)
class Advantages:
    """Histograms of the advantages of several steps.

    Attributes:
        steps: [S].
        edges: [B + 1], the same for all steps.
        shares: [S, B] of a step's rollouts, rows sum to 1.
    """

    steps: np.ndarray
    edges: np.ndarray
    shares: np.ndarray


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` items spread evenly over a sequence, its first and last among them. Raises: ValueError for limit < 2."""
    if limit < 2:
        raise ValueError(f"limit must be at least 2, got {limit}")
    if len(items) <= limit:
        return list(items)
    return [items[at] for at in sorted({round(at) for at in np.linspace(0, len(items) - 1, limit)})]


def heldout_grid(run: RunData, is_picture: Callable[[Sample], bool], rows: int = ROWS, columns: int = COLUMNS) -> Grid | None:
    """The grid of a run; None without pictures. Tables that cannot be read become notes of the run."""
    files = spread(step_files(run.folder / "heldout"), columns)
    tables = {step: read_samples(path, run.notes) for step, path in files}
    shown = {step: {(s.prompt_id, s.index): s for s in found if is_picture(s)} for step, found in tables.items()}
    shown = {step: found for step, found in shown.items() if found}
    keys = list(dict.fromkeys(itertools.chain.from_iterable(shown.values())))[:rows]
    if not keys:
        return None
    prompts = {key: sample.prompt for found in shown.values() for key, sample in found.items()}
    return Grid(list(shown), [GridRow(prompts[key], [found.get(key) for found in shown.values()]) for key in keys])


def advantage_histograms(folder: Path) -> Advantages | None:
    """Of at most `TABLES` of a run's steps; None without finite advantages. Tables that cannot be read are left out."""
    found: dict[int, np.ndarray] = {}
    for step, path in spread(step_files(folder / "rollouts"), TABLES):
        try:
            values = pq.read_table(path, columns=["advantage"])["advantage"].to_numpy().astype("float64")
        except (pa.ArrowException, OSError, KeyError):
            continue
        if len(values := values[np.isfinite(values)]):
            found[step] = values
    if not found:
        return None
    largest = max(float(np.abs(values).max()) for values in found.values()) or 1.0
    edges = np.linspace(-largest, largest, BINS + 1)
    shares = np.stack([np.histogram(values, edges)[0] / len(values) for values in found.values()])
    return Advantages(np.array(list(found)), edges, shares)
