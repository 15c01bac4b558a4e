"""Draws the curves on the pages of docs/algorithms: an algorithm beside GRPO, from an ablation's runs.

    python -m xomni_rl.experiments.ablation.algorithm_curves runs/algorithms

Every algorithm's picture is docs/algorithms/curves/NAME.png; then `python -m xomni_rl.experiments.algorithm_pages` shows it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from xomni_rl.experiments.ablation.ablate import finished_groups
from xomni_rl.experiments.ablation.comparison import Comparison, compare
from xomni_rl.experiments.ablation.curves import (
    STYLE,
    Curve,
    draw_curve,
    heldout_curve,
    metric_label,
    training_curve,
)
from xomni_rl.experiments.ablation.plan import read_plan
from xomni_rl.experiments.algorithm_pages import DOCS, choices
from xomni_rl.experiments.report.data import ReportError

FIRST = "grpo"
AXIS = "samples"
METRIC = "ocr_char"
WIDTH, HEIGHT = 7.6, 2.7


def algorithm_figure(comparison: Comparison, metric: str = METRIC) -> Figure:
    """Held-out score, training reward and entropy of a comparison's methods against images generated in training.

    Raises: ReportError if the runs have no such held-out metric.
    """
    if metric not in comparison.metrics:
        raise ReportError(f"these runs have no held-out {metric}; they have {', '.join(comparison.metrics)}")
    panels: list[tuple[str, dict[str, Curve | None], bool]] = [
        (
            f"Held-out {metric_label(metric)}",
            {name: heldout_curve(comparison.curves[name, metric], AXIS) for name in comparison.methods},
            True,
        )
    ]
    for column, title in (("reward", "Training reward"), ("entropy", "Entropy, nats per token")):
        panels.append((title, {name: training_curve(runs, column, AXIS) for name, runs in comparison.methods.items()}, False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        for place, (title, curves, markers) in zip(figure.subplots(1, 3), panels, strict=True):
            for number, (name, curve) in enumerate(curves.items()):
                if curve is not None:
                    draw_curve(place, curve, name, number, markers=markers)
            place.set_title(title, loc="left", fontsize=9, fontweight="bold")
            place.set_xlabel("images generated in training", fontsize=8)
            place.tick_params(labelsize=8)
            place.set_xlim(left=0)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def main(
    runs: Annotated[Path, typer.Argument(help="The folder of an ablation over algorithms, grpo among them.")],
    out: Annotated[Path, typer.Option(help="Where the pictures go.")] = DOCS / "curves",
) -> None:
    """Draw docs/algorithms/curves/NAME.png from an ablation's runs."""
    plan = read_plan(runs)
    groups = {} if plan is None else finished_groups(runs, plan)[0]
    if FIRST not in groups:
        found = ", ".join(groups) or "none at all"
        raise ReportError(
            f"{runs} holds no ablation with ended runs of {FIRST}, which the others are drawn beside, but {found}"
        )
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in choices() if name in groups]
    for name in track(names, "drawing", console=Console(stderr=True)):
        shown = dict.fromkeys([FIRST, name])
        comparison = compare({each: groups[each] for each in shown}, metrics=[METRIC])
        beside = out / f".{name}.png"
        figure = algorithm_figure(comparison)
        with mpl.rc_context(STYLE):
            figure.savefig(beside, dpi=110, metadata={"Software": None})
        os.replace(beside, out / f"{name}.png")


if __name__ == "__main__":
    typer.run(main)
