"""What a training step costs as prompts, images per prompt and image tokens grow: measured, and an affine fit to each."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from xomni_rl.experiments.benchmarks._train_sides import job_config
from xomni_rl.experiments.run import build_parts
from xomni_rl.policies.records import read_rows
from xomni_rl.policies.trainer import train

AXES = ("prompts", "group", "tokens")


@dataclass(frozen=True)
class Point:
    """A size of a training step.

    Attributes:
        prompts: P, prompts per step.
        group: G, images per prompt.
        size: (height, width) of an image in px.
    """

    prompts: int = 8
    group: int = 8
    size: tuple[int, int] = (32, 96)

    def tokens(self, token_size: int) -> int:
        """Image tokens of one image."""
        return (self.size[0] // token_size) * (self.size[1] // token_size)


CENTRE = Point()
"""The default configuration's; an axis is varied with the others as here."""
VARIED = {
    "prompts": [replace(CENTRE, prompts=count) for count in (2, 4, 8, 16)],
    "group": [replace(CENTRE, group=count) for count in (2, 4, 8, 16)],
    "tokens": [replace(CENTRE, size=(32, width)) for width in (48, 96, 144, 192)],
}


def cost(
    overrides: Sequence[str] = (), varied: Mapping[str, Sequence[Point]] | None = None, steps: int = 2, passes: int = 2
) -> dict[str, Any]:
    """Measures every point, in turns, and fits a line to each axis.

    Args:
        overrides: of the default configuration.
        varied: axis → points, which differ in that axis alone; None = `VARIED`.
        steps: a pass and point.
        passes: over all points; a point's figure is its quickest step, because whatever else runs can only add to it.
    Returns: `points` (rows of prompts, group, tokens, seconds) and, for each axis, `fixed` (s), `per_unit` (s per prompt, per
        image of a group, per token) and `r2`.
    """
    varied = varied or VARIED
    seconds: dict[Point, list[float]] = {point: [] for points in varied.values() for point in points}
    with tempfile.TemporaryDirectory() as folder:
        parts = build_parts(job_config(1, overrides, Path(folder)))
        for number in range(passes):
            for index, (point, spent) in enumerate(seconds.items()):
                config = job_config(steps, [*overrides, *_sized(point)], Path(folder) / f"{number}_{index}")
                spent += _step_seconds(config, parts, point)
    token_size = parts["policy"].stack.token_size
    rows = {point: _row(point, token_size, min(spent)) for point, spent in seconds.items()}
    fits = {axis: _line(axis, [rows[point] for point in points]) for axis, points in varied.items()}
    print_cost(list(rows.values()), fits)
    return {"points": list(rows.values()), **fits}


def _sized(point: Point) -> tuple[str, str]:
    return f"trainer.prompts_per_step={point.prompts}", f"trainer.group_size={point.group}"


def _step_seconds(config: dict[str, Any], parts: dict[str, Any], point: Point) -> list[float]:
    """Seconds of each step of a run on prompts that ask for the point's size."""
    prompts = [replace(prompt, size=point.size) for prompt in parts["train_prompts"]]
    train(config, **parts | {"train_prompts": prompts}, console=Console(file=io.StringIO()))
    return [row["time"]["total"] for row in read_rows(Path(config["run"]) / "metrics.jsonl")]


def _row(point: Point, token_size: int, seconds: float) -> dict[str, float]:
    return {"prompts": point.prompts, "group": point.group, "tokens": point.tokens(token_size), "seconds": seconds}


def _line(axis: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return affine_fit([row[axis] for row in rows], [row["seconds"] for row in rows])


def affine_fit(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least squares of y = fixed + per_unit · x.

    Returns: `fixed`, `per_unit`, and `r2`, the share of y's variance that it explains (NaN if y is constant).

    >>> affine_fit([1, 2, 3], [3, 5, 7])["r2"]
    1.0
    """
    design = np.stack([np.ones(len(x)), np.asarray(x, dtype=np.float64)], axis=1)
    target = np.asarray(y, dtype=np.float64)
    (fixed, per_unit), *_ = np.linalg.lstsq(design, target, rcond=None)
    left, spread = target - design @ (fixed, per_unit), target - target.mean()
    r2 = 1 - (left @ left) / (spread @ spread) if spread.any() else float("nan")
    return {"fixed": float(fixed), "per_unit": float(per_unit), "r2": float(r2)}


def print_cost(rows: Sequence[Mapping[str, float]], fits: Mapping[str, Mapping[str, float]]) -> None:
    """A row per point, then a line per axis with its fit."""
    table = Table(title="a training step, by size")
    for column in ("prompts", "images per prompt", "tokens per image", "s per step", "ms per image", "µs per token"):
        table.add_column(column, justify="right")
    for row in rows:
        images = row["prompts"] * row["group"]
        sizes = [f"{row[axis]:.0f}" for axis in AXES]
        each = row["seconds"] / images
        table.add_row(*sizes, f"{row['seconds']:.3f}", f"{1e3 * each:.1f}", f"{1e6 * each / row['tokens']:.0f}")
    Console().print(table)
    for axis, fit in fits.items():
        fixed, per_unit = fit["fixed"], fit["per_unit"]
        Console().print(f"by {axis}: {fixed:.3f} s + {per_unit:.4f} s · {axis}, R² {fit['r2']:.3f}", highlight=False)
