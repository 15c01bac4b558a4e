"""The same held-out prompts drawn by every method: before training, and after it with the first seed.

The prompts are the first of the fixed held-out grid, in its order: nobody chose them.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from xomni_rl.experiments.ablation.comparison import Comparison
from xomni_rl.experiments.ablation.curves import SOFT, STYLE
from xomni_rl.experiments.ablation.runs import Run
from xomni_rl.experiments.report.data import Sample, read_samples, step_files

ROWS = 10
COLUMN = 1.55  # inches, of a picture
TEXT = 0.19  # inches, of a line of text
WIDTH = 19  # most characters of a line over a column
SHARP = 8  # most methods that are drawn at full sharpness
RIGHT, WRONG = "#17774f", "#b8324a"
BEFORE = "before"


@dataclass(frozen=True)
class GridRow:
    """One prompt: column ("before", then every method) → what was drawn; a method without a picture of it is absent."""

    prompt: str
    samples: dict[str, Sample]


def grid_rows(comparison: Comparison, most: int = ROWS) -> list[GridRow]:
    """The first prompts whose pictures were kept before training, with what every method made of them."""
    chosen = {name: first_seed(comparison, runs) for name, runs in comparison.methods.items()}
    before = _pictures(chosen[comparison.first], -1)
    after = {name: _pictures(run, run.last) for name, run in chosen.items()}
    rows = []
    for key, sample in before.items():
        drawn = {name: found[key] for name, found in after.items() if key in found}
        if drawn:
            rows.append(GridRow(sample.prompt, {BEFORE: sample, **drawn}))
    return rows[:most]


def first_seed(comparison: Comparison, runs: Sequence[Run]) -> Run:
    """The run of the first seed that all methods have; of the method's own first one if they share none."""
    order = [run.seed for run in comparison.methods[comparison.first]]
    shared = [seed for seed in order if all(seed in [r.seed for r in found] for found in comparison.methods.values())]
    return next((run for run in runs if shared and run.seed == shared[0]), runs[0])


def grid_figure(comparison: Comparison, rows: Sequence[GridRow]) -> Figure:
    """A column of prompts, then a column of pictures before training, then one per method; under each what was read."""
    columns = [BEFORE, *comparison.methods]
    height, width, _ = picture(rows[0].samples[BEFORE]).shape
    cell = COLUMN * height / width + 1.5 * TEXT
    titles = {name: _title(comparison, name) for name in columns}
    top = (1.2 + max(map(len, titles.values()))) * TEXT
    size = ((1 + len(columns)) * (COLUMN + 0.12) + 0.1, len(rows) * cell + top + 0.1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        for number, lines in enumerate(titles.values(), 1):
            title: dict[str, Any] = {"fontsize": 8.5, "fontweight": "bold", "va": "bottom", "parse_math": False}
            left = number * (COLUMN + 0.12) + 0.1
            figure.text(left / size[0], 1 - (top - 0.4 * TEXT) / size[1], "\n".join(lines), **title)
        for line, row in enumerate(rows):
            bottom = size[1] - top - line * cell - COLUMN * height / width
            words = textwrap.fill(textwrap.shorten(row.prompt, 90, placeholder="…"), 22)
            text: dict[str, Any] = {"fontsize": 8, "va": "top", "parse_math": False}
            figure.text(0.1 / size[0], (bottom + COLUMN * height / width) / size[1], words, **text)
            for number, name in enumerate(columns, 1):
                left = number * (COLUMN + 0.12) + 0.1
                box = (left / size[0], bottom / size[1], COLUMN / size[0], COLUMN * height / width / size[1])
                if name in row.samples:
                    draw_sample(figure.add_axes(box), row.samples[name])
        return figure


def _title(comparison: Comparison, name: str) -> list[str]:
    """Lines over a column: the method's name, broken at its commas, and the seed."""
    if name == BEFORE:
        return [BEFORE]
    parts = [part if len(part) <= WIDTH else f"{part[: WIDTH - 1]}…" for part in name.split(",")]
    return [*parts, f"seed {first_seed(comparison, comparison.methods[name]).seed}"]


def draw_sample(axis: Axes, sample: Sample, title: str = "") -> None:
    """One picture with what was read under it, green where it is right and red where it is wrong."""
    axis.axis("off")
    axis.imshow(picture(sample), interpolation="bicubic")
    read, colour = sample.read or "(nothing read)" if sample.read is not None else "", SOFT
    if sample.correct is not None:
        read, colour = (f"✓ {read}", RIGHT) if sample.correct else (f"✗ {read}", WRONG)
    below: dict[str, Any] = {"transform": axis.transAxes, "va": "top", "fontsize": 8.5, "parse_math": False}
    axis.text(0.0, -0.08, title, color=SOFT, **below)
    axis.text(1.0, -0.08, textwrap.shorten(read, 24, placeholder="…"), color=colour, family="monospace", ha="right", **below)


def write_grid(comparison: Comparison, out: Path) -> list[Path]:
    """The grid as PNG; nothing if no pictures were kept."""
    rows = grid_rows(comparison)
    if not rows:
        return []
    sharp = len(comparison.methods) <= SHARP
    with mpl.rc_context(STYLE):
        grid_figure(comparison, rows).savefig(out, dpi=200 if sharp else 100, metadata={"Software": None})
    return [out]


def picture(sample: Sample) -> np.ndarray:
    """The sample's picture, uint8 [H, W, 3]. Raises: ValueError if it has none."""
    if sample.image is None:
        raise ValueError(f"sample {sample.prompt_id}/{sample.index} has no picture")
    with Image.open(io.BytesIO(sample.image)) as image:
        return np.asarray(image.convert("RGB"))


def _pictures(run: Run, step: int) -> dict[tuple[str, int], Sample]:
    """(prompt, index) → sample with a picture, of the evaluation of that step; −1 = the first one."""
    files = dict(step_files(run.folder / "heldout"))
    samples = read_samples(files[step if step >= 0 else min(files)], [])
    return {(sample.prompt, sample.index): sample for sample in samples if _is_picture(sample)}


def _is_picture(sample: Sample) -> bool:
    if sample.image is None:
        return False
    try:
        with Image.open(io.BytesIO(sample.image)):
            return True
    except UnidentifiedImageError:
        return False
