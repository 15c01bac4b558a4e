"""A comparison on a terminal, or as plain text where there is none."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from xomni_rl.experiments.ablation.comparison import Comparison
from xomni_rl.experiments.ablation.tables import cells, cost_note, notes, shown, target_cells, target_name

PLAIN_WIDTH = 140  # columns, where nobody's window limits them


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Prints the tables, and what must be said under them."""
    table = _scores(comparison, narrow=False)
    if Measurement.get(console, console.options.update(max_width=1000), table).maximum > console.width:
        table = _scores(comparison, narrow=True)
    console.print(table, highlight=False)
    for note in notes(comparison):
        console.print(Text(f"{note}.", "dim"), soft_wrap=True)
    if comparison.targets:
        console.print()
        console.print(_targets(comparison), highlight=False)
        console.print(Text(cost_note(comparison), "dim"), soft_wrap=True)
    console.print()
    fairness = comparison.fairness
    if fairness.equal:
        console.print(Text(f"The same in all runs: {'; '.join(fairness.equal)}."), soft_wrap=True)
    if fairness.differing:
        console.print(Text(f"Settings that differ: {', '.join(fairness.differing)}."), soft_wrap=True)
    for warning in fairness.warnings:
        console.print(Text.assemble(("unfair: ", "bold yellow"), f"{warning}."), soft_wrap=True)


def _scores(comparison: Comparison, narrow: bool) -> Table:
    seeds = len({row.seeds for row in comparison.rows}) > 1
    compared = comparison.compared
    table = _table("Held-out scores after training", "method")
    for title in (*["seeds"] * seeds, "mean", "IQM", "gain", *[f"P(better than {comparison.first})"] * compared):
        table.add_column(title, justify="right")
    for metric in comparison.shown:
        rows = comparison.rows_of(metric)
        table.add_section()
        table.add_row(Text(comparison.title(metric), "bold"))
        before = [shown(rows[0].before), shown(rows[0].iqm_before)]
        table.add_row(Text("before", "dim"), *[""] * seeds, *(_cell(text, narrow, "dim") for text in before))
        for row in rows:
            _, mean, *others = cells(row)
            figures = [_cell(mean, narrow, "bold" if row.best and compared else "")]
            figures += [_cell(text, narrow) for text in others[: 2 + compared]]
            table.add_row(Text(row.name), *[str(row.seeds)] * seeds, *figures)
    return table


def _targets(comparison: Comparison) -> Table:
    table = _table("Cost of a target", "method")
    for title in ("target", "reached", "seconds of training", "images"):
        table.add_column(title, justify="right")
    for row in comparison.targets:
        table.add_row(Text(row.name), target_name(row), *target_cells(row))
    return table


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column(first)
    return table


def _cell(text: str, narrow: bool, style: str = "") -> Text:
    """A figure with its interval; in a narrow window the interval stands under it."""
    return Text(text.replace(" [", "\n[").replace(", ", ",") if narrow else text, style)
