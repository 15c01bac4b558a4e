"""`xomni-rl ablate` and `xomni-rl compare`: many runs, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xomni_rl.config import ConfigError
from xomni_rl.registry import unknown_name

if TYPE_CHECKING:
    from xomni_rl.experiments.ablation.comparison import Comparison, Target

GROUP = "--group"
OPTIONS = ("--group", "--out", "--metric", "--target", "--help")
TARGET_HELP = "Held-out score to reach, such as ocr_exact=0.7; may be repeated. Default: 90 % of the first method's gain."
METRIC_HELP = "Held-out metric to show; may be repeated. Default: all that the runs have in common."


def ablate(
    overrides: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE[,VALUE…] …", help="Overrides of `xomni-rl train`; lists sweep.", show_default=False),
    ],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time.", show_default="one per GPU, without a GPU one per core")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a run that crashed is tried again.")] = 1,
    target: Annotated[list[str] | None, typer.Option(metavar="METRIC=SCORE", help=TARGET_HELP, show_default=False)] = None,
    metric: Annotated[list[str] | None, typer.Option(help=METRIC_HELP, show_default=False)] = None,
    config_dir: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A folder of your own configurations.", show_default=False),
    ] = None,
) -> None:
    """Run every combination of settings over seeds, and compare them.

    A comma list sweeps its key; `seed` replicates, every other swept key makes variants, the first of which is the one the
    others are compared with. run=FOLDER names the folder: FOLDER/VARIANT/SEED holds a run each, FOLDER the tables (table.csv,
    .md, .tex), curves (.png, .svg), pictures (grid.png) and comparison.html.

    Call it again to go on: runs that ended are kept, interrupted ones go on from their checkpoint, further choices are added;
    other settings are refused. Exit status 1 if a run crashed more often than --retries; the others are run all the same.

    Examples:

    • xomni-rl ablate algorithm=grpo,dr_grpo seed=0,1,2 run=runs/ablation

    • xomni-rl ablate algorithm=grpo,dr_grpo seed=0,1,2,3,4 run=runs/ablation

    • xomni-rl ablate trainer.learning_rate=5e-5,1e-4,2e-4 'seed=range(0,3)' trainer.steps=200 run=runs/learning_rate

    • xomni-rl ablate reward=ocr,embedded seed=0,1,2 run=runs/rewards --target ocr_exact=0.7 --jobs 2
    """
    targets = parse_targets(target or [])
    from rich.console import Console
    from rich.text import Text

    from xomni_rl.experiments.ablation.ablate import run_ablation

    done = run_ablation(overrides, jobs=jobs, retries=retries, metrics=metric or [], targets=targets, config_dir=config_dir)
    if done.comparison is not None:
        _print(done.comparison, done.files)
    messages = Console(stderr=True)
    for run in done.failed:
        log = done.folder / run.folder / "train.log"
        messages.print(Text(f"failed: {run.label}: {run.error} ({log})"), soft_wrap=True)
    if done.failed or done.comparison is None:
        raise typer.Exit(1)


def compare(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN…] [--group NAME RUN…]…",
            help="Run folders or an ablation's folder, or methods by name with --group NAME RUN…, the baseline first.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.", show_default=False)] = ...,  # type: ignore[assignment]
    target: Annotated[list[str] | None, typer.Option(metavar="METRIC=SCORE", help=TARGET_HELP, show_default=False)] = None,
    metric: Annotated[list[str] | None, typer.Option(help=METRIC_HELP, show_default=False)] = None,
) -> None:
    """Compare run folders, paired by held-out prompt.

    Writes the same tables, curves, pictures and page as `ablate`. Without --group, runs whose settings differ in nothing but
    the seed are one method. What makes the comparison unfair is said under the table.

    Examples:

    • xomni-rl compare runs/seed0 runs/seed1 runs/seed2 --out results

    • xomni-rl compare --group before runs/old0 runs/old1 --group after runs/new0 runs/new1 --out results

    • xomni-rl compare runs/ablation runs/another --out results --metric ocr_exact --target ocr_exact=0.7
    """
    targets = parse_targets(target or [])
    named, folders = parse_groups(arguments or [])
    from xomni_rl.experiments.ablation.ablate import runs_inside
    from xomni_rl.experiments.ablation.grouping import group_runs
    from xomni_rl.experiments.ablation.outputs import write_comparison

    groups = {name: runs_inside(found) for name, found in named.items()} or group_runs(runs_inside(folders))
    _print(*write_comparison(groups, out, metrics=metric or [], targets=targets))


def parse_groups(arguments: Sequence[str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """The arguments of `compare` as (method → folders, []) or ({}, folders).

    Raises: ConfigError for an unknown option, both forms at once, or a group without a folder or with a name used twice.
    """
    folders: list[Path] = []
    groups: dict[str, list[Path]] = {}
    words = iter(arguments)
    target = folders
    for word in words:
        if word == GROUP:
            name = next(words, "")
            if not name or name.startswith("--"):
                raise ConfigError("--group needs a name and run folders: --group NAME RUN…")
            if name in groups:
                raise ConfigError(f"two groups are called {name}")
            target = groups[name] = []
        elif word.startswith("-"):
            raise ConfigError(unknown_name("option of compare,", word, OPTIONS))
        else:
            target.append(Path(word))
    if groups and folders:
        raise ConfigError("give either run folders or --group NAME RUN…, not both")
    for name, found in groups.items():
        if not found:
            raise ConfigError(f"the group {name} has no run folder: --group NAME RUN…")
    return groups, folders


def parse_targets(texts: Sequence[str]) -> list[Target]:
    """ "ocr_exact=0.7" as targets. Raises: ConfigError for another form."""
    from xomni_rl.experiments.ablation.comparison import Target

    targets = []
    for text in texts:
        metric, _, score = text.rpartition("=")
        try:
            targets.append(Target(metric, float(score)))
        except ValueError:
            metric = ""
        if not metric:
            raise ConfigError(f"--target must read METRIC=SCORE, such as ocr_exact=0.7, but is {text!r}")
    return targets


def _print(comparison: Comparison, files: Sequence[Path]) -> None:
    """Tables and files on standard output."""
    from rich.console import Console

    from xomni_rl.experiments.ablation.terminal import PLAIN_WIDTH, print_comparison

    console = Console()
    print_comparison(comparison, console if console.is_terminal else Console(width=PLAIN_WIDTH))
    typer.echo(f"\nwritten: {', '.join(map(str, files))}")
