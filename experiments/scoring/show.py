"""What is seen of scoring in the terminal: the bar, the tables, what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from xomni_rl.experiments.scoring.summary import RewardSummary, Summary

BLOCKS = " ▁▂▃▄▅▆▇█"
WIDE = 110
"""Columns of a terminal from which on the table is drawn with all its columns."""


class _Speed(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "")


@contextmanager
def progress(console: Console | None, total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A function that moves the bar on by so many images."""
    if console is None:
        yield lambda _: None
        return
    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("scoring", total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def print_summary(summary: Summary, title: str, console: Console) -> None:
    """The table of means, that of the models' differences, and what was not scored.

    Names and reasons are `Text`: rich would take brackets in a string for styles and `:one:` for an emoji.
    """
    models = list(dict.fromkeys(model for model, _ in summary.rewards))
    wide, several = console.width >= WIDE, len(models) > 1
    headings = ["reward", *["model"] * several, "mean", "95 % interval", *["lowest – highest"] * wide, "distribution"]
    table = Table(title=Text(title, "table.title"), box=box.ROUNDED if wide else box.SIMPLE_HEAD)
    for heading in [*headings, "scored", "not applicable" if wide else "n/a", "failed"]:
        fixed = heading in ("distribution", "mean")
        table.add_column(heading, justify="left" if heading in ("reward", "model") else "right", overflow="fold", no_wrap=fixed)
    for column in dict.fromkeys(column for _, column in summary.rewards):
        for model in models:
            row = summary.rewards[model, column]
            ends = [interval(row.lowest, row.highest)] * wide
            cells = [number(row.mean), interval(row.low, row.high), *ends, bars(row.histogram)]
            table.add_row(Text(column), *[Text(model)] * several, *cells, *_counts(row))
    console.print(table)
    if summary.comparisons:
        console.print(_comparisons(summary))
    for problem in summary.problems:
        console.print(Text(problem, "red"))
    hidden = summary.troubled - len(summary.problems)
    if hidden > 0:
        console.print(f"and {hidden} more in the column error", style="red")


def bars(histogram: Sequence[int]) -> str:
    """Counts as unicode bars; whatever is there at all is seen."""
    most = max(histogram, default=0)
    if not most:
        return ""
    return "".join(BLOCKS[math.ceil(count / most * (len(BLOCKS) - 1))] for count in histogram)


def number(value: float) -> str:
    """A score for people: fewer decimals the larger it is, a dash for NaN."""
    if math.isnan(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"


def interval(low: float, high: float) -> str:
    """ "low – high", or a dash."""
    return "–" if math.isnan(low) else f"{number(low)} – {number(high)}"


def _counts(row: RewardSummary) -> list[str]:
    return [str(row.scored), str(row.not_applicable), str(row.failed)]


def _comparisons(summary: Summary) -> Table:
    table = Table(title="models on the same prompts")
    for column in ("reward", "models", "difference", "95 % interval", "first is better", "prompts"):
        table.add_column(column, justify="left" if column in ("reward", "models") else "right", overflow="fold")
    for each in summary.comparisons:
        better = "–" if math.isnan(each.probability_better) else f"{each.probability_better:.1%}"
        difference = "–" if math.isnan(each.difference) else f"{each.difference:+.4f}"
        pair = Text(f"{each.a} − {each.b}")
        table.add_row(Text(each.column), pair, difference, interval(each.low, each.high), better, str(each.prompts))
    return table
