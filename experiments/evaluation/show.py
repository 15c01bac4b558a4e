"""An evaluation on a terminal: a table of figures, their breakdown, and who is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xomni_rl.experiments.evaluation.run import Evaluation
from xomni_rl.experiments.scoring.files import counted

_SHOWN = 8
_HASH = 12
PLAIN_WIDTH = 140
"""Columns where nobody's window limits them."""


def console(stderr: bool) -> Console:
    """A console as wide as the terminal, or as the tables need where there is none."""
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=PLAIN_WIDTH)


def show(evaluation: Evaluation, console: Console) -> None:
    """Prints the tables, what was evaluated, and what failed."""
    summary = evaluation.summary
    console.print(_figures(summary), highlight=False)
    if len(summary["categories"]) > 1:
        console.print(_categories(summary), highlight=False)
    if summary["differences"]:
        console.print(_differences(summary), highlight=False)
    for model, source in summary["sources"].items():
        console.print(Text(f"{model}: {_said(source)}"), soft_wrap=True)
    failed = evaluation.table[evaluation.table["error"].notna()]
    for row in failed.head(_SHOWN).itertuples():
        text = f"not scored: {row.model}, {row.prompt_id} image {row.number}: {row.error}"
        console.print(Text(text, "red"), soft_wrap=True)
    if len(failed) > _SHOWN:
        console.print(Text(f"and {len(failed) - _SHOWN} more; see the column error of samples.parquet", "red"), soft_wrap=True)


def _said(source: Mapping[str, Any]) -> str:
    """The weights that drew the images by the beginnings of their hashes, or how many images a folder holds of the suite's."""
    if "images" in source:
        return f"{source['images']} image files of {source['place']}"
    hashes = ", ".join(f"{part} {value[:_HASH]}" for part, value in source["weights"].items())
    return f"drawn by {source['place']}, weights {hashes}"


def _figures(summary: Mapping[str, Any]) -> Table:
    prompts, images = (counted(summary[what]["count"], name) for what, name in (("prompts", "prompt"), ("drawing", "image")))
    title = f"{summary['suite']}: {prompts}, {images} each"
    table = _table(title, "model", "figure", "mean", "95 % interval", "scored", "not applicable", "failed")
    for model, cells in summary["models"].items():
        table.add_section()
        for position, (name, cell) in enumerate(cells.items()):
            counts = (str(cell[key]) for key in ("scored", "not_applicable", "failed"))
            shown = "" if position else model
            table.add_row(Text(shown), Text(name), number(cell["mean"]), interval(cell), *counts)
    return table


def _categories(summary: Mapping[str, Any]) -> Table:
    models = list(summary["models"])
    figures = list(next(iter(summary["models"].values())))
    several = len(models) > 1
    table = _table("By category", "category", *(["model"] * several), *figures, "scored", "failed")
    for category, by_model in summary["categories"].items():
        for model, cells in by_model.items():
            main = cells[figures[0]]
            means = (number(cell["mean"]) for cell in cells.values())
            table.add_row(Text(category), *([Text(model)] * several), *means, str(main["scored"]), str(main["failed"]))
    return table


def _differences(summary: Mapping[str, Any]) -> Table:
    table = _table("Paired differences", "models", "figure", "difference", "95 % interval", "P(better)", "pairs")
    for row in summary["differences"]:
        better = "–" if row["probability_better"] is None else f"{row['probability_better']:.3f}"
        pair = f"{row['second']} − {row['first']}"
        difference = "–" if row["difference"] is None else f"{row['difference']:+.4f}"
        table.add_row(Text(pair), Text(row["figure"]), difference, interval(row, "+.4f"), better, str(row["pairs"]))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 or column in ("model", "figure") else "right")
    return table


def number(value: float | None) -> str:
    """Four decimals, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def interval(cell: Mapping[str, Any], form: str = ".4f") -> str:
    """ "low – high", or a dash."""
    return "–" if cell["low"] is None else f"{cell['low']:{form}} – {cell['high']:{form}}"
