"""Curves with bands over the seeds, on their own light card so that they read on a dark page too (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator

from xomni_rl.experiments.ablation.comparison import Comparison
from xomni_rl.experiments.ablation.runs import Point, Run
from xomni_rl.experiments.report.figures import PALETTE

CARD, INK, SOFT, LINE = "#fbfcfd", "#1a1d23", "#5d6675", "#dfe3ea"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.facecolor": CARD,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebf0",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "figure.facecolor": CARD,
    "svg.hashsalt": "xomni-rl",
}
LABELS = {"ocr_exact": "OCR exact match", "ocr_char": "OCR character accuracy", "ocr": "OCR reward"}
AXIS_LABELS = {"step": "training step", "seconds": "seconds of training", "samples": "images generated in training"}
TRAINING = {
    "reward": ("Training reward", "mean over a step"),
    "kl_reference": ("KL to the reference", "nats per token"),
    "approx_kl": ("KL to the sampling policy", "nats per token"),
    "entropy": ("Entropy", "nats per token"),
}
ROUNDING = 1e-6
"""A KL that never exceeds this, in nats per token, is rounding: with one update per rollout the policy sampled is updated."""
DASHES = ("-", "--", ":", "-.")
COLUMNS = 3
BANDS = 5  # most methods whose bands are drawn in full; of more, a mere shade


@dataclass(frozen=True)
class Curve:
    """One line with its band: places [E], values [E], lower and upper ends [E]."""

    at: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Panel:
    """One set of axes: a title, what the values are, and a curve per method."""

    key: str
    title: str
    unit: str
    curves: Mapping[str, Curve]
    evaluations: bool = False


def panels(comparison: Comparison, axis: str) -> list[Panel]:
    """Held-out metrics, then training reward, KL and entropy as far as any run recorded them, against one of `runs.AXES`."""
    found = [
        Panel(
            metric,
            f"Held-out {metric_label(metric)}",
            "mean over seeds and prompts",
            {name: heldout_curve(comparison.curves[name, metric], axis) for name in comparison.methods},
            evaluations=True,
        )
        for metric in comparison.shown
    ]
    for column, (title, unit) in TRAINING.items():
        curves = {name: made for name, runs in comparison.methods.items() if (made := training_curve(runs, column, axis))}
        kl = column in ("kl_reference", "approx_kl")
        if curves and not (kl and max(np.abs(curve.high).max() for curve in curves.values()) < ROUNDING):
            found.append(Panel(column, title, unit, curves))
    return [panel for panel in found if all(np.isfinite(curve.at).all() for curve in panel.curves.values())]


def heldout_curve(points: Sequence[Point], axis: str) -> Curve:
    """Mean of every evaluation with its 95 % interval over seeds and prompts."""
    columns = [[getattr(point.mean, part) for point in points] for part in ("value", "low", "high")]
    return Curve(np.array([point.at[axis] for point in points]), *map(np.array, columns))


def training_curve(runs: Sequence[Run], column: str, axis: str) -> Curve | None:
    """A smoothed column of the metrics at the steps that all seeds made: mean, and from the lowest to the highest seed.

    Returns: None if a run does not have the column.
    """
    if not all(column in run.metrics and run.metrics[column].notna().any() for run in runs):
        return None
    series = [run.metrics[column].dropna() for run in runs]
    frame = pd.concat([one.ewm(span=max(5, len(one) // 20)).mean() for one in series], axis=1, join="inner")
    at = np.mean([_places(run, frame.index, axis) for run in runs], axis=0)
    values = frame.to_numpy(dtype="float64")
    return Curve(at, values.mean(axis=1), values.min(axis=1), values.max(axis=1))


def curve_figure(comparison: Comparison, axis: str) -> Figure:
    """All panels against one axis, a line per method.

    Bands: held-out metrics, 95 % interval over seeds and prompts; the others, from the lowest to the highest seed.
    """
    shown = panels(comparison, axis)
    columns = 2 if len(shown) == 4 else min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    with mpl.rc_context(STYLE):
        size = (4.0 * columns, 3.1 * rows + 0.5)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, hspace=0.03))
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, panel in zip(axes, shown, strict=False):
            for number, (name, curve) in enumerate((name, panel.curves.get(name)) for name in comparison.methods):
                if curve is not None:
                    draw_curve(place, curve, name, number, markers=panel.evaluations, band=len(comparison.methods) <= BANDS)
            _dress(place, panel, axis)
        for place in axes[len(shown) :]:
            place.axis("off")
        if len(comparison.methods) > 1:
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * columns), handlelength=2.6)
        return figure


def draw_curve(place: Axes, curve: Curve, label: str, number: int, *, markers: bool = False, band: bool = True) -> None:
    """One line, with its band, in the colour and dash of that number."""
    colour, dash = PALETTE[number % len(PALETTE)], DASHES[number // len(PALETTE) % len(DASHES)]
    place.fill_between(curve.at, curve.low, curve.high, color=colour, alpha=0.13 if band else 0.05, lw=0)
    for end in (curve.low, curve.high) if band else ():
        place.plot(curve.at, end, color=colour, lw=0.6, alpha=0.5)  # where bands lie on each other, their ends still tell
    place.plot(curve.at, curve.value, color=colour, lw=1.8, ls=dash, marker="o" if markers else "", ms=3.5, label=label)


def write_curves(comparison: Comparison, folder: Path) -> list[Path]:
    """curves_<axis>.png and .svg for every axis that the runs recorded."""
    written = []
    for axis in AXIS_LABELS:
        if panels(comparison, axis):
            written += save(curve_figure(comparison, axis), folder / f"curves_{axis}")
    return written


def metric_label(metric: str) -> str:
    """What a reader calls the metric."""
    return LABELS.get(metric, metric)


def save(figure: Figure, out: Path) -> list[Path]:
    """`<out>.png` (at 160 dots per inch) and `<out>.svg`; nothing in them depends on the time."""
    png, svg = out.with_name(out.name + ".png"), out.with_name(out.name + ".svg")
    with mpl.rc_context(STYLE):
        figure.savefig(png, dpi=160, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})
    return [png, svg]


def _places(run: Run, steps: pd.Index, axis: str) -> np.ndarray:
    if axis == "seconds":
        return run.training_seconds().reindex(steps).to_numpy(dtype="float64")
    return np.array([run.at(axis, int(step)) for step in steps])


def _dress(place: Axes, panel: Panel, axis: str) -> None:
    place.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold", parse_math=False)
    place.set_xlabel(AXIS_LABELS[axis])
    place.set_ylabel(panel.unit, fontsize=9)
    place.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=axis != "seconds"))
    if axis == "samples":
        place.xaxis.set_major_formatter(EngFormatter(sep=""))
    place.set_xlim(left=0)
