"""Several runs in one set of axes: a line per method, and a band from its lowest to its highest seed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xomni_rl.experiments.ablation.grouping import group_runs
from xomni_rl.experiments.report.data import PREFERRED_HEADLINES, ReportError, RunData
from xomni_rl.experiments.report.figures import PALETTE, Panel, bucket_means, empty_figure

Methods = Mapping[str, Sequence[RunData]]
SMOOTHED = ("reward", "reward/")
DASHES = ("solid", "dash", "dot", "dashdot")
HEALTH = {
    "approx_kl": ("KL to the sampling policy", "nats per token"),
    "kl_reference": ("KL to the reference", "nats per token"),
    "entropy": ("Entropy", "nats per token"),
    "clip_fraction": ("Clip fraction", "share of tokens"),
    "ratio_max_deviation": ("Importance ratio", "largest |ratio − 1|"),
    "grad_norm": ("Gradient norm", "L2 norm"),
    "zero_variance_share": ("Groups without variance", "share"),
    "failed_share": ("Failed scores", "share"),
    "loss": ("Loss", "loss"),
    "learning_rate": ("Learning rate", "learning rate"),
}
COST = {"time/total": ("Time of a step", "seconds"), "memory/peak_gib": ("Peak memory", "GiB")}


def methods(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Method → its runs: those whose settings differ in nothing but the seed.

    Runs that cannot be told apart so (the same settings and seed twice, no configuration) are each on their own, by folder.
    """
    by_folder = {run.folder: run for run in runs}
    try:
        return {name: [by_folder[folder] for folder in found] for name, found in group_runs(list(by_folder)).items()}
    except ReportError:
        return {run_name(run, runs): [run] for run in by_folder.values()}


def run_name(run: RunData, runs: Sequence[RunData]) -> str:
    """The run's folder, from the one that all runs are in."""
    folders = [one.folder.resolve() for one in runs]
    shared = os.path.commonpath([folder.parent for folder in folders])
    return run.folder.resolve().relative_to(shared).as_posix()


def overlay_panels(found: Methods) -> dict[str, list[Panel]]:
    """Section key → panels, one for every metric that any run recorded, in the order of a single run's page."""
    columns = list(dict.fromkeys(str(name) for runs in found.values() for run in runs for name in run.metrics))
    heldout = [name for name in columns if name.startswith("heldout/")]
    first = [f"heldout/{name}" for name in PREFERRED_HEADLINES if f"heldout/{name}" in heldout]
    named = {"reward": ("Training reward", "mean over a step")}
    named |= {name: (f"Held-out {name[8:]}", "mean") for name in [*first, *sorted(set(heldout) - set(first))]}
    named |= {name: (f"Component {name[7:]}", "mean raw score") for name in columns if name.startswith("reward/")}
    sections = {"curves": named, "health": HEALTH, "time": COST}
    return {
        key: [panel for column, words in wanted.items() if (panel := overlay_panel(found, column, *words))]
        for key, wanted in sections.items()
    }


def overlay_panel(found: Methods, column: str, title: str, unit: str) -> Panel | None:
    """One metric of all methods; None if no run has it."""
    figure = empty_figure(y_title=unit)
    shown = 0
    for number, (name, runs) in enumerate(found.items()):
        values = common_steps(runs, column)
        if values is None:
            continue
        shown += 1
        colour, dash = PALETTE[number % len(PALETTE)], DASHES[number // len(PALETTE) % len(DASHES)]
        steps, mean = values.index.to_numpy("int32"), values.mean(axis=1).to_numpy("float32")
        low, high = values.min(axis=1).to_numpy("float32"), values.max(axis=1).to_numpy("float32")
        if len(runs) > 1 and len(steps) > 1:
            figure.add_scatter(**_band(steps, low, high, name, colour))
        figure.add_scatter(
            x=steps,
            y=mean,
            customdata=np.stack([low, high], axis=1),
            name=f"{name} ({len(runs)} seeds)" if len(runs) > 1 else name,
            legendgroup=name,
            mode="lines+markers" if column.startswith("heldout/") or len(steps) == 1 else "lines",
            line={"color": colour, "width": 2, "dash": dash},
            hovertemplate="%{y:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]" if len(runs) > 1 else "%{y:.3g}",
        )
    if not shown:
        return None
    figure.update_layout(showlegend=len(found) > 1)
    note = "Band: lowest to highest seed." if any(len(runs) > 1 for runs in found.values()) else "One seed each."
    if column.startswith(SMOOTHED):
        note += " Averaged over about a twentieth of the run."
    return Panel(f"all-{column}", title, note, figure)


def common_steps(runs: Sequence[RunData], column: str) -> pd.DataFrame | None:
    """A metric of a method's runs at the steps that all of them have, one column per run; None if one lacks it."""
    if not all(column in run.metrics and run.metrics[column].notna().any() for run in runs):
        return None
    series = [run.metrics[column].dropna() for run in runs]
    if column.startswith(SMOOTHED):
        series = [one.ewm(span=max(5, len(one) // 20)).mean() for one in series]
    frame = pd.concat(series, axis=1, join="inner").sort_index()
    return None if frame.empty else bucket_means(frame.set_axis(range(len(runs)), axis=1))


def _band(steps: np.ndarray, low: np.ndarray, high: np.ndarray, name: str, colour: str) -> dict[str, Any]:
    """The area between the lowest and the highest seed, drawn there and back."""
    outline = {"x": np.concatenate([steps, steps[::-1]]), "y": np.concatenate([high, low[::-1]])}
    look = {"fill": "toself", "fillcolor": colour, "opacity": 0.16, "line": {"width": 0}, "mode": "lines"}
    return outline | look | {"name": name, "legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
