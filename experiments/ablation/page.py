"""The comparison as one HTML file with its figures inside, readable without a network; see `report.page` for its safeguards."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from xomni_rl.experiments import report
from xomni_rl.experiments.ablation.comparison import Comparison
from xomni_rl.experiments.ablation.curves import AXIS_LABELS, Curve, Panel, panels
from xomni_rl.experiments.ablation.grids import BEFORE, grid_rows
from xomni_rl.experiments.ablation.tables import cost_note, notes, shown, target_cells, target_name
from xomni_rl.experiments.report import figures
from xomni_rl.experiments.report.look import styles
from xomni_rl.experiments.report.page import figure_json, picture_uri

_HERE = Path(__file__).parent
_REPORT = Path(report.__file__).parent
DASHES = ("solid", "dash", "dot", "dashdot")
PICTURES = 16
"""Most prompts of the page's grid."""


def write_page(comparison: Comparison, out: Path) -> Path:
    """Writes the page and returns its path."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": picture_uri, "shown": shown}
    environment.globals |= {"target_name": target_name, "target_cells": target_cells}
    sections = {axis: [_panel(panel, axis) for panel in panels(comparison, axis)] for axis in AXIS_LABELS}
    out.write_text(
        environment.get_template("comparison.html").render(
            comparison=comparison,
            fairness=comparison.fairness,
            notes=notes(comparison),
            cost_note=cost_note(comparison),
            sections=[(f"Against {AXIS_LABELS[axis]}", found) for axis, found in sections.items() if found],
            columns=[BEFORE, *comparison.methods],
            grid=grid_rows(comparison, PICTURES),
            figures=Markup(figure_json([panel for found in sections.values() for panel in found])),
            nonce=secrets.token_urlsafe(16),
            css=styles(_REPORT / "style.css"),
            script=Markup((_REPORT / "charts.js").read_text(encoding="utf-8")),
            plotly=Markup(get_plotlyjs()),
        ),
        encoding="utf-8",
    )
    return out


def _panel(panel: Panel, axis: str) -> figures.Panel:
    """A panel as an interactive figure: for each method its band, and its line with the interval in the hover text."""
    figure = go.Figure()
    figure.update_layout(template=None, hovermode="x unified", showlegend=len(panel.curves) > 1)
    figure.update_xaxes(title_text=AXIS_LABELS[axis], automargin=True)
    figure.update_yaxes(title_text=panel.unit, automargin=True, exponentformat="power")
    for number, (name, curve) in enumerate(panel.curves.items()):
        colour = figures.PALETTE[number % len(figures.PALETTE)]
        if len(curve.at) > 1:
            figure.add_scatter(**_band(curve, name, colour))
        figure.add_scatter(
            x=curve.at.astype("float32"),
            y=curve.value.astype("float32"),
            customdata=np.stack([curve.low, curve.high], axis=1).astype("float32"),
            name=name,
            legendgroup=name,
            mode="lines+markers" if panel.evaluations else "lines",
            line={"color": colour, "width": 2, "dash": DASHES[number // len(figures.PALETTE) % len(DASHES)]},
            hovertemplate="%{y:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]",
        )
    note = "Band: 95 % interval over seeds and prompts." if panel.evaluations else "Band: lowest to highest seed."
    return figures.Panel(f"{axis}-{panel.key}", panel.title, note, figure)


def _band(curve: Curve, name: str, colour: str) -> dict[str, Any]:
    """The area between a curve's ends, drawn there and back."""
    return {
        "x": np.concatenate([curve.at, curve.at[::-1]]).astype("float32"),
        "y": np.concatenate([curve.high, curve.low[::-1]]).astype("float32"),
        "fill": "toself",
        "fillcolor": colour,
        "opacity": 0.16,
        "line": {"width": 0},
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "showlegend": False,
        "hoverinfo": "skip",
    }
