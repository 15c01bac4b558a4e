"""`xomni-rl score`: the shell's side of `xomni_rl.experiments.scoring`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xomni_rl.config import ConfigError
from xomni_rl.registry import unknown_name


def score(
    images: Annotated[
        list[Path],
        typer.Argument(help="Folder of images; several are models to compare.", show_default=False),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Their prompts, .jsonl, .txt, .csv, .tsv or .parquet; default: prompts.jsonl among the images. Rewards that "
            "read no prompt, such as aesthetic, do without.",
            show_default=False,
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="Rewards and mixes such as embedded, separated by commas; may be repeated.", show_default="ocr"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="REWARD.KEY=VALUE", help="Option of a reward; may be repeated.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Table to write, .csv, .jsonl or .parquet; default: scores.csv in IMAGES, or here for several.",
            show_default=False,
        ),
    ] = None,
    match: Annotated[str, typer.Option(metavar="name|index|COLUMN|auto", help="What matches images and prompts.")] = "auto",
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out prompts without an image and images without a prompt.")
    ] = False,
    recursive: Annotated[
        bool | None,
        typer.Option(help="Look through folders inside; default: if no image lies in IMAGES itself.", show_default=False),
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="Write a gallery beside the table, SCORES.html.")] = False,
    gallery: Annotated[Path | None, typer.Option(help="Write the gallery there.", show_default=False)] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the table is the same with any number.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of the arithmetic in each process.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per call of a reward, and lost at most by a stop.")] = 32,
    restart: Annotated[bool, typer.Option("--restart", help="Throw away what an interrupted run has kept.")] = False,
    seed: Annotated[int, typer.Option(help="Of the confidence intervals' bootstrap.")] = 0,
) -> None:
    """Score folders of images, from any generator, with any rewards.

    An image belongs to the prompt that a table's column, its name or its place says; what was used is printed. Scores are kept
    as they come: after Ctrl-C, a crash or a full disk the same command goes on.

    Exit status: 0 all scored; 1 an error, or a file that was no image or a reward that failed on one (the table is written, its
    column error says why); 2 wrong usage; 130 interrupted.

    Examples:

    • xomni-rl score pictures

    • xomni-rl score pictures --prompts prompts.jsonl --reward ocr,clip --option ocr.metric=exact --out scores.parquet

    • xomni-rl score photographs --reward aesthetic,sharpness --out scores.csv

    • xomni-rl score big --prompts table.parquet --match file_name --reward sharpness --workers 4 --out big.parquet

    • xomni-rl score model_a model_b --prompts prompts.jsonl --reward embedded --html
    """
    for folder in images:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder of images")
    if prompts is not None and not prompts.exists():
        raise ConfigError(f"there are no prompts at {prompts}; give --prompts FILE")
    from xomni_rl.commands.jobs import parse_options

    options = parse_options(option or [])
    rewards = [name.strip() for each in reward or ["ocr"] for name in each.split(",") if name.strip()]
    out = out or (images[0] / "scores.csv" if len(images) == 1 else Path("scores.csv"))
    from rich.console import Console

    from xomni_rl.experiments.scoring import ScoringInterruptedError, score_folder
    from xomni_rl.experiments.scoring.scorers import components_of

    _check_options(options, list(components_of(rewards)))
    try:
        scores = score_folder(
            images,
            prompts,
            rewards,
            out,
            console=Console(),
            options=options,
            match=match,
            partial=partial,
            recursive=recursive,
            gallery=gallery or (out.with_suffix(".html") if html else None),
            workers=workers,
            threads=threads,
            batch_size=batch_size,
            restart=restart,
            seed=seed,
        )
    except ScoringInterruptedError as interrupted:
        typer.echo(str(interrupted), err=True)
        raise typer.Exit(130) from interrupted
    typer.echo(f"table: {scores.out}")
    if scores.gallery is not None:
        typer.echo(f"gallery: {scores.gallery}")
    if not scores.complete:
        raise typer.Exit(1)


def _check_options(options: dict[str, dict[str, Any]], components: list[str]) -> None:
    for name in options:
        if name not in components:
            raise ConfigError(unknown_name("reward in --option", name, components))
