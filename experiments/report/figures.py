"""The report's curves as plotly figures: one small function per panel, none of them knows the page.

A panel whose columns the run does not have is absent, never an empty frame.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from xomni_rl.experiments.report.data import PREFERRED_HEADLINES, RunData
from xomni_rl.experiments.report.hacking import Gap
from xomni_rl.experiments.report.timeline import advantage_histograms

MAX_POINTS = 2000
AREA_POINTS = 200
# Mid-tones that keep at least 3:1 against both the light and the dark page.
PALETTE = ("#3d7fd9", "#d9762b", "#2f9e77", "#a463c9", "#c8506a", "#8a8f3a", "#5b8c9e", "#8b7355")
GREY = "#8b93a1"
TIME_COLOURS = {"sample": PALETTE[0], "decode": PALETTE[2], "reward": PALETTE[1], "update": PALETTE[3], "other": GREY}


@dataclass(frozen=True)
class Panel:
    """One figure of the page with its heading and the sentence that says how to read it."""

    key: str
    title: str
    note: str
    figure: go.Figure
    wide: bool = False


def thin(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a curve, keeping each bucket's lowest and highest: a one-step spike survives.

    Args:
        x, y: [n] float, no NaN, x ascending.
        limit: most points returned, at least 4.
    Returns: x, y of the points kept, [min(n, limit)] or fewer; first and last points are always among them.
    Raises: ValueError if the shapes differ or the limit is below 4.
    """
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"x and y must be of one length, got {x.shape} and {y.shape}")
    if limit < 4:
        raise ValueError(f"limit must be at least 4, got {limit}")
    if len(x) <= limit:
        return x, y
    edges = np.linspace(0, len(x), (limit - 2) // 2 + 1).astype(int)
    keep = {0, len(x) - 1}
    for low, high in itertools.pairwise(edges):
        keep.update((low + int(y[low:high].argmin()), low + int(y[low:high].argmax())))
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def bucket_means(frame: pd.DataFrame, limit: int = AREA_POINTS) -> pd.DataFrame:
    """The frame averaged into at most `limit` runs of neighbouring rows; the index is each run's last step."""
    if len(frame) <= limit:
        return frame
    bucket = np.arange(len(frame)) * limit // len(frame)
    means = frame.groupby(bucket).mean()
    means.index = pd.Index(frame.index.to_series().groupby(bucket).last(), name=frame.index.name)
    return means


def panels(run: RunData) -> dict[str, list[Panel]]:
    """Section key → its panels, in the order of the page."""
    sections: dict[str, Sequence[Callable[[RunData], Panel | None]]] = {
        "curves": (_reward, _heldout, _components, _weights),
        "health": (_kl, _entropy, _clip_fraction, _exactness, _gradient, _shares, _loss, _learning_rate),
        "time": (_step_time, _memory),
        "advantages": (_advantages, _advantages_over_steps),
    }
    return {key: [panel for make in makers if (panel := make(run))] for key, makers in sections.items()}


def gap_panels(gaps: Sequence[Gap]) -> list[Panel]:
    """A panel per source: what is trained on against every reward that is only logged; where one was hacked is shaded."""
    found = []
    for source, unit in (("training", "a step's"), ("held-out", "the prompts'")):
        chosen = [gap for gap in gaps if gap.source == source]
        if not chosen:
            continue
        figure = empty_figure(y_title="change, standard deviations")
        first = chosen[0]
        curves = [("trained on", first.steps, first.trained), *((gap.name, gap.steps, gap.logged) for gap in chosen)]
        for number, (name, steps, values) in enumerate(curves):
            figure.add_scatter(
                x=steps.astype("int32"),
                y=values.astype("float32"),
                name=name,
                mode="lines+markers",
                line={
                    "color": PALETTE[number % len(PALETTE)],
                    "width": 3 if number == 0 else 2,
                    "dash": "dot" if number else None,
                },
            )
        for gap in chosen:
            if gap.hacked:
                figure.add_vrect(x0=gap.best_step, x1=gap.last_step, fillcolor=PALETTE[4], opacity=0.15, line_width=0)
        figure.update_layout(showlegend=True)
        note = f"Since the beginning, in {unit} standard deviations, higher is better. Shaded: the gap widens for good."
        found.append(Panel(f"gap-{source}", f"Trained against only logged: {source}", note, figure))
    return found


def empty_figure(x_title: str = "step", y_title: str = "", **layout: Any) -> go.Figure:
    """A figure in the page's form; those over steps are zoomed together."""
    figure = go.Figure()
    meta = "steps" if x_title == "step" else None
    figure.update_layout(**{"template": None, "meta": meta, "hovermode": "x unified", "showlegend": False} | layout)
    figure.update_xaxes(title_text=x_title, automargin=True)
    figure.update_yaxes(title_text=y_title, automargin=True, exponentformat="power")
    return figure


def _points(run: RunData, column: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The finite values of one column, thinned; None when the run has none."""
    if column not in run.metrics:
        return None
    series = run.metrics[column]
    series = series[np.isfinite(series)]
    if not len(series):
        return None
    x, y = thin(series.index.to_numpy(dtype="float64"), series.to_numpy(dtype="float64"))
    return x.astype("int32"), y.astype("float32")


def _lines(run: RunData, columns: dict[str, str], y_title: str, *, markers: bool = False, **layout: Any) -> go.Figure | None:
    """A figure of the columns the run has (column → label); None when it has none of them."""
    curves: list[tuple[list[str], np.ndarray, np.ndarray]] = []
    for column, label in columns.items():
        points = _points(run, column)
        if points is None:
            continue
        same = next((curve for curve in curves if _equal(curve[1:], points)), None)
        if same:
            same[0].append(label)  # one line on top of another would hide it
        else:
            curves.append(([label], *points))
    if not curves:
        return None
    figure = empty_figure(y_title=y_title, **layout)
    for number, (labels, x, y) in enumerate(curves):
        figure.add_scatter(
            x=x,
            y=y,
            name=" = ".join(labels),
            mode="lines+markers" if markers or len(x) == 1 else "lines",
            line={"color": PALETTE[number % len(PALETTE)], "width": 2},
        )
    figure.update_layout(showlegend=len(columns) > 1)
    return figure


def _equal(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether two curves are the same to the eye."""
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=0.0) for a, b in zip(first, second, strict=True))


def _reward(run: RunData) -> Panel | None:
    points = _points(run, "reward")
    if points is None:
        return None
    span = max(5, len(run.metrics) // 20)
    smooth = run.metrics["reward"].dropna().ewm(span=span).mean()
    x, y = thin(smooth.index.to_numpy(dtype="float64"), smooth.to_numpy(dtype="float64"))
    figure = empty_figure(y_title="mean reward")
    raw = {"color": PALETTE[0], "width": 1}
    figure.add_scatter(x=points[0], y=points[1], name="each step", mode="lines", line=raw, opacity=0.4)
    smoothed = {"color": PALETTE[0], "width": 2.5}
    figure.add_scatter(x=x.astype("int32"), y=y.astype("float32"), name="smoothed", mode="lines", line=smoothed)
    return Panel(
        "reward", "Training reward", f"Mean over the rollouts of a step; bold: average over about {span} steps.", figure
    )


def _heldout(run: RunData) -> Panel | None:
    columns = {c: c.removeprefix("heldout/") for c in run.metrics.columns if c.startswith("heldout/")}
    first = [f"heldout/{name}" for name in PREFERRED_HEADLINES if f"heldout/{name}" in columns]
    ordered = {column: columns[column] for column in [*first, *sorted(set(columns) - set(first))]}
    figure = _lines(run, ordered, "held-out score", markers=True)
    note = "Prompts never trained on, the same random streams at every evaluation."
    return figure and Panel("heldout", "Held-out", note, figure, wide=len(ordered) > 4)


def _components(run: RunData) -> Panel | None:
    columns = {c: c.removeprefix("reward/") for c in run.metrics.columns if c.startswith("reward/")}
    figure = _lines(run, columns, "mean raw score")
    note = "Every component and further metric on its own, weight 0 included; click a name to hide it."
    return figure and Panel("components", "Reward components", note, figure, wide=True)


def _weights(run: RunData) -> Panel | None:
    columns = {c: c.removeprefix("weight/") for c in run.metrics.columns if c.startswith("weight/")}
    figure = _lines(run, columns, "weight")
    return figure and Panel("weights", "Scheduled weights", "Of the components whose weight changes over training.", figure)


def _kl(run: RunData) -> Panel | None:
    columns = {"approx_kl": "to the sampling policy", "kl_reference": "to the reference"}
    figure = _lines(run, columns, "nats per token")
    note = "How far the update moved the policy, and how far it is from where it began."
    return figure and Panel("kl", "KL divergence", note, figure)


def _entropy(run: RunData) -> Panel | None:
    figure = _lines(run, {"entropy": "entropy"}, "nats per token", yaxis_rangemode="tozero")
    return figure and Panel("entropy", "Entropy", "A fall towards 0 ends exploration: groups become equal.", figure)


def _clip_fraction(run: RunData) -> Panel | None:
    figure = _lines(run, {"clip_fraction": "clip fraction"}, "share of tokens", yaxis_rangemode="tozero")
    note = "Tokens whose ratio left the trust region; 0 with one update per rollout."
    return figure and Panel("clip_fraction", "Clip fraction", note, figure)


def _exactness(run: RunData) -> Panel | None:
    columns = {"ratio_max_deviation": "largest |ratio − 1|", "logprob_max_delta": "largest |Δ log-probability|"}
    logarithmic = any((run.metrics.get(column, pd.Series(dtype=float)) > 0).any() for column in columns)
    axis: dict[str, Any] = {"yaxis_type": "log", "yaxis_dtick": 1} if logarithmic else {}
    figure = _lines(run, columns, "at the first update", **axis)
    note = "Sampler against trainer at equal weights: rounding only, or the gradient is wrong."
    return figure and Panel("exactness", "Importance ratio", note, figure)


def _gradient(run: RunData) -> Panel | None:
    figure = _lines(run, {"grad_norm": "gradient norm"}, "L2 norm", yaxis_rangemode="tozero")
    return figure and Panel("grad_norm", "Gradient norm", "Before clipping at max_grad_norm.", figure)


def _shares(run: RunData) -> Panel | None:
    columns = {"zero_variance_share": "groups without variance", "failed_share": "failed scores"}
    figure = _lines(run, columns, "share", yaxis_rangemode="tozero")
    note = "A group whose rollouts all score the same teaches nothing."
    return figure and Panel("shares", "Wasted rollouts", note, figure)


def _loss(run: RunData) -> Panel | None:
    figure = _lines(run, {"loss": "loss"}, "loss")
    return figure and Panel("loss", "Loss", "Not a measure of progress: its gradient is what counts.", figure)


def _learning_rate(run: RunData) -> Panel | None:
    figure = _lines(run, {"learning_rate": "learning rate"}, "learning rate", yaxis_rangemode="tozero")
    return figure and Panel("learning_rate", "Learning rate", "After warm-up and schedule.", figure)


def _step_time(run: RunData) -> Panel | None:
    found = [c for c in run.metrics.columns if c.startswith("time/") and c != "time/total"]
    steps = run.metrics.loc[run.metrics.index > 0, found].dropna(how="all")
    # What happens at few steps only (held-out evaluation) would tower over the rest: it is named in the note.
    columns = [column for column in found if 2 * steps[column].count() > len(steps)]
    if steps.empty or not columns:
        return None
    parts = steps[columns].fillna(0.0)
    order = {f"time/{name}": position for position, name in enumerate(TIME_COLOURS)}
    columns = sorted(columns, key=lambda column: order.get(column, len(order)))
    means = bucket_means(parts)
    figure = empty_figure(y_title="seconds per step")
    figure.update_layout(showlegend=True)
    for number, column in enumerate(columns):
        name = column.removeprefix("time/")
        colour = TIME_COLOURS.get(name, PALETTE[(number + 3) % len(PALETTE)])
        figure.add_scatter(
            x=means.index.to_numpy(dtype="int32"),
            y=means[column].to_numpy(dtype="float32"),
            name=name,
            mode="lines",
            stackgroup="time",
            line={"width": 0.5, "color": colour},
            hovertemplate="%{y:.3f} s",
        )
    totals = parts.sum()
    shares = " · ".join(f"{c.removeprefix('time/')} {totals[c] / totals.sum():.0%}" for c in columns)
    rest = run.metrics[[column for column in found if column not in columns]].sum()
    besides = "".join(f" Besides: {str(c).removeprefix('time/')} {seconds:.0f} s." for c, seconds in rest.items())
    return Panel("time", "Where a step's time goes", f"Whole run: {shares}.{besides}", figure, wide=True)


def _memory(run: RunData) -> Panel | None:
    figure = _lines(run, {"memory/peak_gib": "peak memory"}, "GiB", yaxis_rangemode="tozero")
    note = "The most that the process held so far: on the GPU if it trains on one, else resident. It should level off."
    return figure and Panel("memory", "Peak memory", note, figure)


def _advantages_over_steps(run: RunData) -> Panel | None:
    found = advantage_histograms(run.folder)
    if found is None or len(found.steps) < 2:
        return None
    figure = empty_figure(y_title="advantage", hovermode="closest")
    figure.add_heatmap(
        x=found.steps.astype("int32"),
        y=((found.edges[:-1] + found.edges[1:]) / 2).astype("float32"),
        z=found.shares.T.astype("float32"),
        colorscale=[[0.0, "rgba(61,127,217,0)"], [1.0, PALETTE[0]]],
        showscale=False,
        hovertemplate="step %{x}, advantage %{y:.2f}: %{z:.0%}<extra></extra>",
    )
    note = f"A histogram for each of {len(found.steps)} steps: the darker, the more of its rollouts."
    return Panel("advantages_over_steps", "Advantages over training", note, figure, wide=True)


def _advantages(run: RunData) -> Panel | None:
    values = np.array([sample.advantage for sample in run.rollouts], dtype="float32")
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    counts, edges = np.histogram(values, bins=min(41, max(5, len(values) // 2)))
    figure = empty_figure("advantage", "rollouts", bargap=0.04)
    sides = [1 if low > 0 else -1 if high < 0 else 0 for low, high in itertools.pairwise(edges)]
    colours = [{1: PALETTE[2], 0: GREY, -1: PALETTE[4]}[side] for side in sides]
    figure.add_bar(
        x=((edges[:-1] + edges[1:]) / 2).astype("float32"),
        y=counts.astype("int32"),
        marker={"color": colours},
        hovertemplate="%{x:.2f}: %{y}<extra></extra>",
    )
    zero = float(np.mean(np.abs(values) < 1e-8))
    note = f"{len(values)} rollouts of step {run.rollout_step}; {zero:.0%} are exactly 0 and teach nothing."
    return Panel("advantages", "Advantages", note, figure, wide=True)
