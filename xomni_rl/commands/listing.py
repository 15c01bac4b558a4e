"""`xomni-rl list`: what there is to choose from, name → file → one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from xomni_rl.registry import UnknownNameError, unknown_name

Row = tuple[str, str, str]


def list_everything(
    what: Annotated[
        str | None,
        typer.Argument(help="rewards, algorithms, prompts, configs, suites or benchmarks; left out: all.", show_default=False),
    ] = None,
) -> None:
    """List what there is: name, file, one line.

    Examples:

    • xomni-rl list

    • xomni-rl list configs
    """
    if what is not None and what not in KINDS:
        raise UnknownNameError(unknown_name("kind to list", what, KINDS))
    for position, kind in enumerate([what] if what else KINDS):
        if position:
            typer.echo()
        _print(kind, KINDS[kind]())


def print_benchmarks() -> None:
    """The benchmarks alone, as `xomni-rl bench` without a name shows them."""
    _print("benchmarks", _benchmarks())


def _print(kind: str, rows: Sequence[Row]) -> None:
    """A heading, then a line per entry, in columns; never wrapped, so that it can be searched and cut."""
    typer.echo(kind)
    shown = [(name, _short(file), line) for name, file, line in rows]
    widths = [max((len(row[column]) for row in shown), default=0) for column in (0, 1)]
    for name, file, line in shown:
        typer.echo(f"  {name:<{widths[0]}}  {file:<{widths[1]}}  {line}".rstrip())


def _short(file: str) -> str:
    """The path from the working directory, if it lies inside."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _rewards() -> list[Row]:
    from xomni_rl.rewards.base import rewards

    return rewards.describe()


def _algorithms() -> list[Row]:
    from xomni_rl.policies.algorithms.base import algorithms

    return algorithms.describe()


def _prompts() -> list[Row]:
    from xomni_rl.prompts import prompt_sets

    return prompt_sets.describe()


def _configs() -> list[Row]:
    """group=choice, its file, and the question at its head."""
    from importlib.resources import files

    root = Path(str(files("xomni_rl.experiments.conf")))
    rows = []
    for path in sorted(root.glob("*/*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        rows.append((f"{path.parent.name}={path.stem}", str(path), first.lstrip("# ").removeprefix("Question: ")))
    return rows


def _suites() -> list[Row]:
    from xomni_rl.experiments.evaluation.suite import suites

    return suites.describe()


def _benchmarks() -> list[Row]:
    from xomni_rl.commands.jobs import benchmarks

    return [(name, str(path), line) for name, (path, line) in benchmarks().items()]


KINDS: dict[str, Callable[[], list[Row]]] = {
    "rewards": _rewards,
    "algorithms": _algorithms,
    "prompts": _prompts,
    "configs": _configs,
    "suites": _suites,
    "benchmarks": _benchmarks,
}
