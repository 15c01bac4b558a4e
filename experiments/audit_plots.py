"""The figure of an audit: score against grade, bars of exploits, rank correlation between rewards."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from xomni_rl.rewards.audit_findings import Findings, Interval

# Okabe and Ito's colours, told apart by colour-blind readers too; markers and dashes tell them apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
COLUMNS = 4
DODGE = 0.16
"""Lines of one panel stand side by side within this many grades: equal ones would hide each other."""
LOWEST, HIGHEST = -0.15, 2.2
"""Axes of shares end here at the latest; what lies beyond is drawn at the edge with its number."""


def draw(findings: Findings, path: Path) -> None:
    """Writes the figure as PNG.

    Rewards without a span (no better on right pictures than on blank ones) have no shares; they appear in the legend and in
    the correlations only.
    """
    names = list(findings.spans)
    styles = {name: _style(index) for index, name in enumerate(names)}
    drawn = [name for name in names if findings.spans[name].low > 0]
    perturbations = list(dict.fromkeys(trend.name for trend in findings.trends))
    exploits = [list(group)[-1] for _, group in groupby(_exploits(findings), key=lambda key: key[0])]
    rows = -(-len(perturbations) // COLUMNS)
    heights = [0.5 + 0.3 * -(-len(names) // 5), 2.3 * rows, max(1.2 + len(exploits) * (0.25 + 0.12 * len(drawn)), 2.5)]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained", dpi=140)
    FigureCanvasAgg(figure)
    subfigures: Any = figure.subfigures(3, 1, height_ratios=heights)
    head, top, bottom = subfigures
    _legend(head, findings, styles)
    axes = top.subplots(rows, COLUMNS, squeeze=False, sharey=True)
    for axis in axes.flat[len(perturbations) :]:
        axis.set_visible(False)
    for index, (axis, perturbation) in enumerate(zip(axes.flat, perturbations, strict=False)):
        _grades(axis, findings, perturbation, {name: styles[name] for name in drawn})
        if index % COLUMNS == 0:
            axis.set_ylabel("score, % of span")
    _ends(axes.flat, [each.share.plus(1.0) for each in findings.effects if each.variant.name in perturbations])
    parts = bottom.subplots(1, 3 if len(names) > 1 else 2)
    for axis, what in zip(parts[:2], ("kept", "bought"), strict=True):
        _bars(axis, findings, exploits, {name: styles[name]["color"] for name in drawn}, what)
    parts[1].tick_params(axis="y", left=False, labelleft=False)
    if len(names) > 1:
        _correlations(parts[2], findings)
    figure.savefig(path, format="png")


def _exploits(findings: Findings) -> list[tuple[str, str]]:
    """(name, strength) of every exploit, mildest strength first."""
    return list(dict.fromkeys((each.name, each.strength) for each in findings.exploits))


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def _legend(head: Any, findings: Findings, styles: Mapping[str, dict[str, Any]]) -> None:
    head.suptitle(
        f"{findings.samples} samples with 95 % intervals; 100 % = the right picture, 0 % = a blank one",
        fontsize=13,
    )
    axis = head.subplots()
    axis.axis("off")
    for name, style in styles.items():
        label = name if findings.spans[name].low > 0 else f"{name} (no span: not drawn)"
        axis.plot([], [], label=label, markersize=8, linewidth=2, **style)
    axis.legend(loc="center", ncols=min(len(styles), 5), fontsize=12, frameon=False)


def _grades(axis: Axes, findings: Findings, perturbation: str, styles: Mapping[str, dict[str, Any]]) -> None:
    """Share of the score left against the grade, one line per reward, with its interval."""
    strengths = [effect.variant.strength for effect in findings.grades(next(iter(findings.spans)), perturbation)]
    for index, (name, style) in enumerate(styles.items()):
        shares = [Interval(1.0, 1.0, 1.0), *(effect.share.plus(1.0) for effect in findings.grades(name, perturbation))]
        _line(axis, shares, DODGE * (index - (len(styles) - 1) / 2) / len(styles), style)
    for level in (0.0, 1.0):
        axis.axhline(level, color="0.6", linewidth=0.8, zorder=0)
    axis.set_title(perturbation.replace("_", " "), fontsize=12, pad=4)
    axis.set_xlabel(f"{strengths[0]} … {strengths[-1]}", fontsize=10)
    axis.set_xticks(range(len(strengths) + 1), ["clean", *map(str, range(1, len(strengths) + 1))])
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _line(axis: Axes, shares: Sequence[Interval], shift: float, style: dict[str, Any]) -> None:
    grades = np.arange(len(shares)) + shift
    values, low, high = (np.array([getattr(share, end) for share in shares]) for end in ("value", "low", "high"))
    axis.plot(grades, values, linewidth=1.6, markersize=5, **style)
    axis.vlines(grades, low, high, color=style["color"], linewidth=1.6, alpha=0.6)
    beyond = np.flatnonzero(values > HIGHEST)
    if len(beyond):
        text, place = f"{100 * values[beyond[-1]]:.0f} % at {beyond[-1]}", (0.97, 0.97)
        axis.annotate(text, place, xycoords="axes fraction", ha="right", va="top", fontsize=10, color=style["color"])


def _ends(axes: Iterable[Axes], shares: Sequence[Interval]) -> None:
    """One range for all panels."""
    for axis in axes:
        axis.set_ylim(LOWEST, _limit(shares))


def _bars(axis: Axes, findings: Findings, exploits: Sequence[tuple[str, str]], colours: Mapping[str, str], what: str) -> None:
    """Horizontal bars: exploits, one bar per reward."""
    shares = {(e.reward, e.name, e.strength): getattr(e, what) for e in findings.exploits}
    thick, highest = 0.8 / max(1, len(colours)), _limit(list(shares.values()))
    for index, (name, colour) in enumerate(colours.items()):
        for row, key in enumerate(exploits):
            if shares[(name, *key)].known:
                _bar(axis, row - 0.4 + thick * (index + 0.5), shares[(name, *key)], thick, highest, colour)
    for level in (0.0, 1.0) if what == "kept" else (0.0,):
        axis.axvline(level, color="0.6", linewidth=0.8, zorder=0)
    labels = [f"{name.replace('_', ' ')}\n{strength}" for name, strength in exploits]
    axis.set_yticks(range(len(exploits)), labels, fontsize=10)
    axis.set_ylim(len(exploits) - 0.5, -0.5)
    axis.set_xlim(LOWEST, highest)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel("% of span")
    axis.set_title(
        "exploits: what a right\npicture keeps" if what == "kept" else "exploits: what they add to\na wrong picture",
        fontsize=12,
    )


def _bar(axis: Axes, place: float, share: Interval, thick: float, highest: float, colour: str) -> None:
    axis.barh(place, share.value, height=0.9 * thick, color=colour)
    axis.plot([share.value] * 2, [place - 0.45 * thick, place + 0.45 * thick], color=colour, linewidth=2)  # also at 0
    if np.isfinite(share.low):
        axis.plot([share.low, share.high], [place, place], color="0.15", linewidth=1.2)
    if share.value > highest:
        text = axis.annotate(f"{100 * share.value:.0f} %", (0.98 * highest, place), va="center", ha="right", fontsize=9)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})


def _correlations(axis: Axes, findings: Findings) -> None:
    """Heat map of Spearman's ρ between rewards."""
    found = findings.agreement
    axis.imshow(np.ma.masked_invalid(found.rho), cmap="PuOr_r", vmin=-1, vmax=1)
    for row in range(len(found.names)):
        for column in range(len(found.names)):
            rho = found.rho[row, column]
            ink = "white" if abs(rho) > 0.65 else "black"
            axis.text(column, row, f"{rho:.2f}" if np.isfinite(rho) else "–", ha="center", va="center", color=ink, fontsize=11)
    axis.set_xticks(range(len(found.names)), found.names, rotation=35, ha="right", fontsize=11)
    axis.set_yticks(range(len(found.names)), found.names, fontsize=11)
    axis.set_title(f"Spearman's ρ over\n{found.pictures.max()} pictures", fontsize=12)


def _limit(shares: Sequence[Interval]) -> float:
    """Where an axis of shares ends: beyond what is drawn, at the latest at HIGHEST."""
    known = [share.high if np.isfinite(share.high) else share.value for share in shares if share.known]
    return float(np.clip(max(known, default=1.0) * 1.05, 1.15, HIGHEST))
