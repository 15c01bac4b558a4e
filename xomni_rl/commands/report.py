"""`xomni-rl report`: what runs leave to look at, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Run folders, or folders of runs such as an ablation's.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="The page to write.", show_default="report.html in the run folder; of several runs, here"
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again whenever a run changes, until all have ended.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two looks.")] = 5.0,
) -> None:
    """Write one self-contained HTML page about one run or several, finished, killed or going on.

    Curves (of several runs: a line per method, bands over its seeds), components, rewards trained on against rewards only
    logged (a gap that widens is called hacking), KL, entropy, time, memory, alarms, pictures of the same prompts over training,
    best and worst rollouts, advantages, configuration and manifest. It needs no network.

    With --watch the page loads itself again and the command ends with the runs; Ctrl-C ends it sooner.

    Examples:

    • xomni-rl report runs/seed0

    • xomni-rl report runs/seed0 runs/seed1 --out both.html

    • xomni-rl report runs/ablation --out ablation.html

    • xomni-rl report runs/seed0 --watch --every 10
    """
    from xomni_rl.experiments.report.data import runs_inside
    from xomni_rl.experiments.report.page import build_report
    from xomni_rl.experiments.report.watch import watch as follow

    folders = runs_inside(runs)
    if not watch:
        typer.echo(build_report(folders, out))
        return
    follow(folders, out, every, typer.echo)
