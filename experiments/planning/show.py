"""The plan as tables, as JSON, and as the page docs/planning.md: `python -m xomni_rl.experiments.planning.show [--check]`."""

from __future__ import annotations

import argparse
import io
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from xomni_rl.experiments.planning.advice import advice, fits
from xomni_rl.experiments.planning.gpus import GIB
from xomni_rl.experiments.planning.job import Job
from xomni_rl.experiments.planning.memory import memory
from xomni_rl.experiments.planning.time import ARITHMETIC, BANDWIDTH, step_seconds

DOCS = Path(__file__).resolve().parents[2] / "docs" / "planning.md"
WIDTH = 100
BLOCK = re.compile(r"<!-- (xomni-rl plan\b.*?) -->\n```text\n.*?```\n", re.DOTALL)
"""A block of the page: the command in a comment, then what it prints."""


def show(job: Job, console: Console) -> None:
    """Prints memory by part and phase, seconds by part, and what to change if it does not fit."""
    console.print(headline(job), highlight=False, soft_wrap=True)
    console.print(memory_table(job))
    console.print(verdict(job), highlight=False, soft_wrap=True)
    show_advice(job, console)
    console.print(time_table(job))
    for note in notes(job):
        console.print(f"- {note}", highlight=False, soft_wrap=True)


def headline(job: Job) -> str:
    """What is planned, in one line."""
    trained = f"adapters of {job.adapters / 1e6:.1f} M" if job.adapters else f"{job.trained / 1e9:.2f} G trained"
    images = f"{job.prompts} × {job.group} images a step, {job.tokens} tokens each"
    return (
        f"{job.model.parameters / 1e9:.2f} G parameters, {trained}; {images}; {job.launch} on {job.gpus} × {job.gpu.name}; "
        f"a backward pass holds {job.piece[1]} images of a process at a time"
    )


def memory_table(job: Job) -> Table:
    """Rows: parts; columns: phases; in GiB, or MiB where everything is small."""
    plan = memory(job)
    unit, word = (GIB, "GiB") if plan.peak >= GIB else (2**20, "MiB")
    table = Table(title=f"one GPU, {word}", box=SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("part")
    for phase in plan.phases:
        table.add_column(phase, justify="right")
    for part in dict.fromkeys([*plan.resident, *(part for parts in plan.phases.values() for part in parts)]):
        held = [parts.get(part, plan.resident.get(part, 0) * (phase != "start")) for phase, parts in plan.phases.items()]
        table.add_row(part, *(f"{size / unit:.1f}" if size else "" for size in held))
    table.add_section()
    table.add_row("total", *(f"{plan.total(phase) / unit:.1f}" for phase in plan.phases), style="bold")
    table.add_row("head-room", *(f"{(job.gpu.usable - plan.total(phase)) / unit:.1f}" for phase in plan.phases))
    return table


def verdict(job: Job) -> str:
    """Whether it fits, in one sentence."""
    plan, room = memory(job), job.gpu.usable
    if plan.peak <= room:
        return f"It fits: {plan.peak / GIB:.1f} GiB of {room / GIB:.1f} in the fullest phase, {plan.fullest}."
    return f"It does not fit: {plan.fullest} needs {plan.peak / GIB:.1f} GiB, and a GPU has {room / GIB:.1f}."


def show_advice(job: Job, console: Console) -> None:
    """Prints the changes that make it fit, or as much as they do."""
    changes, changed = advice(job)
    if not changes:
        return
    table = Table(title="what to change, in order", box=SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("change")
    for column in ("saves, GiB", "peak then, GiB"):
        table.add_column(column, justify="right")
    for change in changes:
        table.add_row(change.override, f"{change.saves / GIB:.1f}", f"{change.peak / GIB:.1f}")
    console.print(table)
    console.print("With all of them it fits." if fits(changed) else "With all of them it still does not fit.", highlight=False)


def time_table(job: Job) -> Table:
    """Seconds of a step by part."""
    table = Table(title="a step, estimated seconds", box=SIMPLE, pad_edge=False, padding=(0, 1))
    table.add_column("part")
    table.add_column("s", justify="right")
    seconds = step_seconds(job)
    for part, each in seconds.items():
        table.add_row(part, f"{each:.1f}")
    table.add_section()
    table.add_row("total without rewards", f"{sum(seconds.values()):.1f}", style="bold")
    return table


def notes(job: Job) -> list[str]:
    """What the figures rest on."""
    gpu = job.gpu
    found = [
        f"times are estimates: {ARITHMETIC:.0%} of {gpu.tensor / 1e12:.0f} TFLOP/s, {BANDWIDTH:.0%} of "
        f"{gpu.bandwidth / 1e9:.0f} GB/s, nothing overlapped; rewards, evaluation and checkpoints are not in them",
        "activations inside rewards and what the allocator cannot use for being in pieces are not counted",
    ]
    unknown = [reward.name for reward in job.rewards if reward.where == "unknown"]
    return found + ([f"size not known, counted as nothing: {', '.join(unknown)}"] if unknown else [])


def as_json(job: Job) -> dict[str, Any]:
    """Everything that is shown, in bytes and seconds."""
    plan = memory(job)
    changes, changed = advice(job)
    return {
        "gpu": asdict(job.gpu),
        "gpus": job.gpus,
        "launch": job.launch,
        "parameters": job.model.parameters,
        "trained": job.trained,
        "resident": plan.resident,
        "phases": plan.phases,
        "totals": {phase: plan.total(phase) for phase in plan.phases},
        "peak": plan.peak,
        "fullest": plan.fullest,
        "usable": job.gpu.usable,
        "fits": fits(job),
        "advice": [asdict(change) for change in changes],
        "fits_with_advice": fits(changed),
        "rewards": [asdict(reward) for reward in job.rewards],
        "seconds": step_seconds(job),
        "notes": notes(job),
    }


def printed(words: Sequence[str]) -> str:
    """What `xomni-rl plan WORDS` prints, without colours."""
    from xomni_rl.experiments.planning.words import planned

    stream = io.StringIO()
    show(planned(words), Console(file=stream, width=WIDTH, color_system=None))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def page(text: str) -> str:
    """The page with every block as its command prints it now."""

    def block(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n```text\n{printed(shlex.split(found[1])[2:])}```\n"

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, or with --check says whether it is up to date."""
    parser = argparse.ArgumentParser(
        prog="python -m xomni_rl.experiments.planning.show", description="Update docs/planning.md."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if it is out of date")
    parser.add_argument("--file", type=Path, default=DOCS, help="the page")
    given = parser.parse_args(arguments)
    before = given.file.read_text(encoding="utf-8")
    after = page(before)
    if before == after:
        return 0
    if given.check:
        print(f"{given.file} is out of date")
        return 1
    given.file.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
