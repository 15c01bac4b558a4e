"""The whole ablation: plan, runs, comparison."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from xomni_rl.experiments.ablation.comparison import Comparison, Target
from xomni_rl.experiments.ablation.display import Display
from xomni_rl.experiments.ablation.execute import ENDED, Executor, Machine, gpus
from xomni_rl.experiments.ablation.folder import check_folder
from xomni_rl.experiments.ablation.plan import PLAN, AblationError, Plan, PlannedRun, extend, parse, read_plan
from xomni_rl.experiments.report.data import ReportError, step_files
from xomni_rl.policies.algorithms.base import build_algorithm


@dataclass(frozen=True)
class Ablation:
    """What came of an ablation.

    Attributes:
        folder: its folder.
        plan: all its runs with their states.
        failed: runs of this call that crashed, in their order.
        comparison: of all runs that ended; None if none did.
        files: what was written of it.
    """

    folder: Path
    plan: Plan
    failed: list[PlannedRun]
    comparison: Comparison | None
    files: list[Path]


def run_ablation(
    overrides: Sequence[str],
    *,
    jobs: int | None = None,
    retries: int = 1,
    metrics: Sequence[str] = (),
    targets: Sequence[Target] = (),
    config_dir: Path | None = None,
    console: Console | None = None,
) -> Ablation:
    """Runs every combination of the swept overrides that is not finished yet, then compares all that are.

    Args:
        overrides: as of `xomni-rl train`; comma lists sweep, `seed` replicates, `run=FOLDER` names the folder.
        jobs: runs at a time; None = one per GPU, without a GPU one per core.
        retries: how often a run that crashed is tried again.
        metrics, targets: as `comparison.compare` takes them.
        config_dir: a folder of the user's own configurations.
        console: where progress goes; None = standard error.
    Raises: ConfigError, AlgorithmError and AblationError for what cannot be run, before anything is written; ReportError if
        the folder holds others' tables, or what ended cannot be compared; KeyboardInterrupt.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise AblationError("an ablation starts its runs itself, each in one process: call it without torchrun")
    request = parse(overrides)
    folder = Path(request.folder or f"runs/ablation_{datetime.now():%Y-%m-%d_%H%M%S}")
    if (folder / "config.yaml").exists():
        raise AblationError(f"{folder} holds a single run; choose another folder with run=FOLDER")
    plan, runs, configs = extend(request, read_plan(folder), config_dir)
    for config in configs.values():
        _check(config)
    check_folder(folder)
    machine = Machine.shared(jobs, len(runs), devices=gpus(list(configs.values())))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AblationError(f"cannot write to {folder} ({error.strerror}): choose another folder with run=FOLDER") from error
    flags = [] if config_dir is None else ["--config-dir", str(config_dir.resolve())]
    display = Display(console, folder, {name: config["trainer"]["steps"] for name, config in configs.items()})
    executor = Executor(folder, plan, runs, configs, machine, retries=retries, flags=flags, display=display)
    if executor.todo:
        plan.calls.append(_call(overrides, machine, retries))
    executor.execute()
    failed = [run for run in runs if run.status == "failed"]
    groups, notes = finished_groups(folder, plan)
    if not groups:
        return Ablation(folder, plan, failed, None, [folder / PLAN])
    from xomni_rl.experiments.ablation.outputs import write_comparison  # loads what draws

    comparison, files = write_comparison(
        groups, folder, metrics=metrics, targets=targets, notes=notes, cost_notes=_sharing(plan)
    )
    return Ablation(folder, plan, failed, comparison, [folder / PLAN, *files])


def finished_groups(folder: Path, plan: Plan) -> tuple[dict[str, list[Path]], list[str]]:
    """Variant → folders of its runs that ended, and a note for each run left out."""
    groups: dict[str, list[Path]] = {}
    notes = []
    for run in plan.runs:
        path = folder / run.folder
        if run.status.partition(":")[0] in (*ENDED, "stopped") and len(step_files(path / "heldout")) > 1:
            groups.setdefault(run.variant, []).append(path)
        else:
            reason = f" ({textwrap.shorten(run.error, 120, placeholder='…')})" if run.error else ""
            notes.append(f"{run.label} is left out: {run.status}{reason}")
    return groups, notes


def runs_inside(folders: Sequence[Path]) -> list[Path]:
    """Run folders, with the folder of an ablation replaced by its runs that ended.

    Raises: ReportError for an ablation of which none ended.
    """
    found = []
    for folder in folders:
        plan = read_plan(folder)
        inside = [folder] if plan is None else [path for paths in finished_groups(folder, plan)[0].values() for path in paths]
        if not inside:
            raise ReportError(f"{folder} holds an ablation of which no run has ended yet")
        found += inside
    return found


def _check(config: dict[str, Any]) -> None:
    """What would fail in every run, found before any is begun."""
    build_algorithm(config["algorithm"]["name"], config["algorithm"]["options"])
    if config["trainer"]["evaluate_every"] is None or config["prompts"]["heldout_count"] == 0:
        raise AblationError(
            "an ablation compares held-out scores: trainer.evaluate_every must not be null, nor prompts.heldout_count 0"
        )


def _call(overrides: Sequence[str], machine: Machine, retries: int) -> dict[str, Any]:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    how = {"jobs": machine.jobs, "threads": machine.threads, "cores": len(machine.cores), "gpus": len(machine.devices)}
    return {"time": when, "overrides": list(overrides), "retries": retries, **how}


def _sharing(plan: Plan) -> list[str]:
    """How the runs shared the machine, for whoever reads the seconds."""
    shares = sorted({(call["jobs"], call["threads"], call["cores"]) for call in plan.calls})
    words = [f"{jobs} at a time with {threads} of {cores} cores each" for jobs, threads, cores in shares]
    return [f"Seconds are of runs made {' or '.join(words)}"] if plan.calls else []
