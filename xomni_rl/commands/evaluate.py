"""`xomni-rl evaluate`: benchmark suites, from the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from xomni_rl.config import ConfigError


def evaluate(
    suite: Annotated[str, typer.Option(help="Which benchmark; xomni-rl list suites names them.")] = "signs",
    recognised: Annotated[
        Path | None,
        typer.Option(help="Suite longtext: score these stored recognitions and print one line of JSON.", show_default=False),
    ] = None,
    language: Annotated[str, typer.Option(help="Suite longtext: en counts words, zh characters.")] = "en",
    compat: Annotated[
        str, typer.Option(help="published: the arithmetic of published tables; fixed: its known faults repaired.")
    ] = "published",
    seed: Annotated[int, typer.Option(min=0, help="Of the intervals' bootstrap.")] = 0,
) -> None:
    """Score a benchmark's protocol.

    With --recognised nothing is drawn or read: each line holds {"ground_truth": ["a text", …], "recognised": "what was read"}.

    Examples:

    • xomni-rl evaluate --suite longtext --recognised readings.jsonl --language en --compat published
    """
    if recognised is None:
        raise ConfigError("give --recognised FILE")
    if suite != "longtext":
        raise ConfigError(f"--recognised is for the suite longtext, not for {suite}")
    from xomni_rl.experiments.evaluation.longtext_counts import check_choices, read_recognitions, score_recognitions

    check_choices(language, compat)
    figures = score_recognitions(read_recognitions(recognised), language, compat, seed)
    typer.echo(json.dumps(figures, ensure_ascii=False))
