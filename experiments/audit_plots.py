"""The figure of an audit: score against grade, bars of exploits, rank correlation between rewards."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter

from xomni_rl.rewards.audit_findings import Findings, Interval

# Okabe and Ito's colours, told apart by colour-blind readers too; markers and dashes tell them apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
COLUMNS = 4
DODGE = 0.16
"""Lines of one panel stand side by side within this many grades: equal ones would hide each other."""
LOWEST, HIGHEST = -1.0, 2.2
"""Axes of shares end here at the latest; what lies beyond is drawn to the edge, with its number."""
Block = tuple[float, Callable[[SubFigure], None]]
"""A part of the figure: its height in inches, and what fills it."""


def draw(findings: Findings, path: Path) -> None:
    """Writes the figure as PNG; without a reward that has a span it is but a sentence, and the correlations if there are any.

    Rewards without a span (no better on right pictures than on blank ones) have no shares; they appear in the legend and in
    the correlations only.
    """
    styles = {name: _style(index) for index, name in enumerate(findings.spans)}
    drawn = {name: style for name, style in styles.items() if findings.spans[name].low > 0}
    perturbations = list(dict.fromkeys(trend.name for trend in findings.trends))
    exploits = [list(group)[-1] for _, group in groupby(_exploits(findings), key=lambda key: key[0])]
    colours = {name: style["color"] for name, style in drawn.items()}
    blocks: list[Block] = [(0.5 + 0.3 * -(-len(styles) // 5), lambda head: _legend(head, findings, styles))]
    if drawn:
        rows, bars = -(-len(perturbations) // COLUMNS), 1.2 + len(exploits) * (0.25 + 0.12 * len(drawn))
        blocks.append((2.3 * rows, lambda top: _panels(top, findings, perturbations, drawn)))
        blocks.append((max(bars, 2.5), lambda bottom: _exploits_and_agreement(bottom, findings, exploits, colours)))
    else:
        blocks.append((0.6, lambda top: _say(top, "no reward scores right pictures above blank ones: audit.csv has the means")))
        if len(styles) > 1:
            blocks.append((4.0, lambda bottom: _correlations(bottom.subplots(), findings)))
    heights = [height for height, _ in blocks]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained", dpi=140)
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)
    for part, (_, fill) in zip(parts.flat, blocks, strict=True):
        fill(part)
    figure.savefig(path, format="png")


def _percent(share: float, _: object = None) -> str:
    return f"{100 * share + 0.0:.0f} %".replace("-", "−")


def _say(part: SubFigure, sentence: str) -> None:
    part.text(0.5, 0.5, sentence, ha="center", va="center", fontsize=12)


def _panels(part: SubFigure, findings: Findings, perturbations: Sequence[str], drawn: Mapping[str, dict[str, Any]]) -> None:
    """One panel per perturbation with grades, all with one range."""
    axes = part.subplots(-(-len(perturbations) // COLUMNS), COLUMNS, squeeze=False, sharey=True)
    low, high = _ends([each.share.plus(1.0) for each in findings.effects if each.variant.name in perturbations])
    for axis in axes.flat[len(perturbations) :]:
        axis.set_visible(False)
    for index, (axis, perturbation) in enumerate(zip(axes.flat, perturbations, strict=False)):
        _grades(axis, findings, perturbation, drawn)
        axis.set_ylim(low, high)
        if index % COLUMNS == 0:
            axis.set_ylabel("score, % of span")


def _exploits_and_agreement(
    part: SubFigure, findings: Findings, exploits: Sequence[tuple[str, str]], colours: Mapping[str, str]
) -> None:
    has_several = len(findings.spans) > 1
    axes = part.subplots(1, 3 if has_several else 2)
    for axis, what in zip(axes[:2], ("kept", "bought"), strict=True):
        _bars(axis, findings, exploits, colours, what)
    axes[1].tick_params(axis="y", left=False, labelleft=False)
    if has_several:
        _correlations(axes[2], findings)


def _exploits(findings: Findings) -> list[tuple[str, str]]:
    """(name, strength) of every exploit, mildest strength first."""
    return list(dict.fromkeys((each.name, each.strength) for each in findings.exploits))


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def _legend(head: SubFigure, findings: Findings, styles: Mapping[str, dict[str, Any]]) -> None:
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
    notes = 0
    for index, (name, style) in enumerate(styles.items()):
        shares = [Interval(1.0, 1.0, 1.0), *(effect.share.plus(1.0) for effect in findings.grades(name, perturbation))]
        _line(axis, shares, DODGE * (index - (len(styles) - 1) / 2) / len(styles), style)
        if note := _beyond(shares):
            place = (0.97, 0.97 - 0.12 * notes)
            axis.annotate(note, place, xycoords="axes fraction", ha="right", va="top", fontsize=10, color=style["color"])
            notes += 1
    for level in (0.0, 1.0):
        axis.axhline(level, color="0.6", linewidth=0.8, zorder=0)
    axis.set_title(perturbation.replace("_", " "), fontsize=12, pad=4)
    axis.set_xlabel(f"{strengths[0]} … {strengths[-1]}", fontsize=10)
    axis.set_xticks(range(len(strengths) + 1), ["clean", *map(str, range(1, len(strengths) + 1))])
    axis.yaxis.set_major_formatter(FuncFormatter(_percent))


def _line(axis: Axes, shares: Sequence[Interval], shift: float, style: dict[str, Any]) -> None:
    grades = np.arange(len(shares)) + shift
    values, low, high = (np.array([getattr(share, end) for share in shares]) for end in ("value", "low", "high"))
    axis.plot(grades, values, linewidth=1.6, markersize=5, **style)
    axis.vlines(grades, low, high, color=style["color"], linewidth=1.6, alpha=0.6)


def _beyond(shares: Sequence[Interval]) -> str:
    """The last value that lies outside the widest axis, and its grade; "" if none does."""
    outside = [grade for grade, share in enumerate(shares) if share.value > HIGHEST or share.value < LOWEST]
    return f"{_percent(shares[outside[-1]].value)} at {outside[-1]}" if outside else ""


def _bars(axis: Axes, findings: Findings, exploits: Sequence[tuple[str, str]], colours: Mapping[str, str], what: str) -> None:
    """Horizontal bars: exploits, one bar per reward."""
    shares = {(e.reward, e.name, e.strength): getattr(e, what) for e in findings.exploits}
    thick, ends = 0.8 / len(colours), _ends(list(shares.values()))
    for row, key in enumerate(exploits):
        known = {name: shares[(name, *key)] for name in colours if shares[(name, *key)].known}
        for index, (name, colour) in enumerate(colours.items()):
            if name in known:
                _bar(axis, row - 0.4 + thick * (index + 0.5), known[name], thick, ends, colour)
        if not known:
            axis.annotate("not tried", (0.02, row), va="center", fontsize=10, color="0.4")
    for level in (0.0, 1.0) if what == "kept" else (0.0,):
        axis.axvline(level, color="0.6", linewidth=0.8, zorder=0)
    labels = [f"{name.replace('_', ' ')}\n{strength}" for name, strength in exploits]
    axis.set_yticks(range(len(exploits)), labels, fontsize=10)
    axis.set_ylim(len(exploits) - 0.5, -0.5)
    axis.set_xlim(*ends)
    axis.xaxis.set_major_formatter(FuncFormatter(_percent))
    axis.set_xlabel("% of span")
    axis.set_title(
        "exploits: what a right\npicture keeps" if what == "kept" else "exploits: what they add to\na wrong picture",
        fontsize=12,
    )


def _bar(axis: Axes, place: float, share: Interval, thick: float, ends: tuple[float, float], colour: str) -> None:
    axis.barh(place, share.value, height=0.9 * thick, color=colour)
    axis.plot([share.value] * 2, [place - 0.45 * thick, place + 0.45 * thick], color=colour, linewidth=2)  # also at 0
    if np.isfinite(share.low):
        axis.plot([share.low, share.high], [place, place], color="0.15", linewidth=1.2)
    low, high = ends
    if not low <= share.value <= high:
        edge, side = (high, "right") if share.value > high else (low, "left")
        text = axis.annotate(_percent(share.value), (0.98 * edge, place), va="center", ha=side, fontsize=9)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})


def _correlations(axis: Axes, findings: Findings) -> None:
    """Heat map of Spearman's ρ between rewards."""
    found = findings.agreement
    axis.imshow(np.ma.masked_invalid(found.rho), cmap="PuOr_r", vmin=-1, vmax=1)
    for row in range(len(found.names)):
        for column in range(len(found.names)):
            rho = found.rho[row, column]
            ink = "white" if abs(rho) > 0.65 else "black"
            text = f"{rho:.2f}".replace("-", "−") if np.isfinite(rho) else "–"
            axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=11)
    axis.set_xticks(range(len(found.names)), found.names, rotation=35, ha="right", fontsize=11)
    axis.set_yticks(range(len(found.names)), found.names, fontsize=11)
    axis.set_title(f"Spearman's ρ over\n{found.pictures.max()} pictures", fontsize=12)


def _ends(shares: Sequence[Interval]) -> tuple[float, float]:
    """Ends of an axis that holds these shares and their intervals; at most from LOWEST to HIGHEST."""
    known = [share for share in shares if share.known]
    lows = [share.low if np.isfinite(share.low) else share.value for share in known]
    highs = [share.high if np.isfinite(share.high) else share.value for share in known]
    low, high = 1.05 * min(lows, default=0.0), 1.05 * max(highs, default=1.0)
    return float(np.clip(low, LOWEST, -0.15)), float(np.clip(high, 1.15, HIGHEST))
