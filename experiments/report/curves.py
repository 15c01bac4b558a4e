"""Static curves with bands (matplotlib), drawn on their own light card so that they read on a dark page too."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from xomni_rl.experiments.report.data import PREFERRED_HEADLINES, read_metrics
from xomni_rl.experiments.report.figures import PALETTE
from xomni_rl.experiments.report.results import bootstrap_mean, heldout_curve

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
    "grid.color": "#e8ebf0",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "figure.facecolor": CARD,
    "svg.hashsalt": "xomni-rl",
}
LABELS = {"ocr_exact": "OCR exact match", "ocr_char": "OCR character accuracy"}


def curve_figure(groups: Mapping[str, Sequence[Path]], metrics: Sequence[str] = PREFERRED_HEADLINES) -> Figure:
    """Training reward and each held-out metric against the step, one line per method.

    Bands: training reward, lowest to highest seed; held-out, 95 % interval over seeds and prompts.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * (1 + len(metrics)), 3.6), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        axes = figure.subplots(1, 1 + len(metrics), squeeze=False)[0]
        for number, (label, folders) in enumerate(groups.items()):
            colour = PALETTE[number % len(PALETTE)]
            draw_reward(axes[0], folders, label, colour)
            for axis, metric in zip(axes[1:], metrics, strict=True):
                draw_heldout(axis, folders, metric, label, colour)
        for axis, title in zip(axes, ["Training reward", *(f"Held-out {metric_label(m)}" for m in metrics)], strict=True):
            axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
            axis.set_xlabel("step")
        if len(groups) > 1:
            axes[0].legend(loc="lower right")
        return figure


def draw_heldout(axis: Axes, folders: Sequence[Path], metric: str, label: str, colour: str) -> None:
    """One held-out curve with its 95 % band."""
    points = [(step, bootstrap_mean(values)) for step, values in heldout_curve(folders, metric)]
    steps = [step for step, _ in points]
    axis.fill_between(steps, [e.low for _, e in points], [e.high for _, e in points], color=colour, alpha=0.18, lw=0)
    axis.plot(steps, [e.mean for _, e in points], color=colour, lw=2, marker="o", ms=4, label=label)


def draw_reward(axis: Axes, folders: Sequence[Path], label: str, colour: str) -> None:
    """The smoothed training reward: mean over seeds, band from the lowest to the highest seed."""
    series = [read_metrics(folder / "metrics.jsonl")["reward"].dropna() for folder in folders]
    frame = pd.concat([s.ewm(span=max(5, len(s) // 20)).mean() for s in series], axis=1).dropna()
    steps = frame.index.to_numpy(dtype="float64")
    axis.fill_between(steps, frame.min(axis=1), frame.max(axis=1), color=colour, alpha=0.18, lw=0)
    axis.plot(steps, frame.mean(axis=1).to_numpy(dtype=np.float64), color=colour, lw=2, label=label)


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
