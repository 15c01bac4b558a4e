"""`xomni-rl train`: a Hydra application around the trainer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xomni_rl.commands.errors import is_for_people, print_error, sentence, wants_traceback

if TYPE_CHECKING:
    from omegaconf import DictConfig


class JobFailedError(RuntimeError):
    """A job of a sweep failed in another process; the message is its number and its sentence."""


class Failures(list[Exception]):
    """Errors of the jobs that ran in this process.

    A launcher may pickle the jobs and run them elsewhere. What arrives there knows it (`elsewhere`), because errors must go
    back through Hydra then, and has told that process what `conf/` relies on.
    """

    elsewhere = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _failures_elsewhere, ()


def _failures_elsewhere() -> Failures:
    from xomni_rl.config import register_resolvers

    register_resolvers()
    failures = Failures()
    failures.elsewhere = True
    return failures


def train(context: typer.Context) -> None:
    """Train a stack by reinforcement learning; a Hydra application: overrides, -m for sweeps, --cfg job, --help."""
    run_application(context.args)


def run_application(arguments: Sequence[str]) -> None:
    """Runs the Hydra application with those arguments.

    A failing job of a sweep is reported at once and the others still run; the exit status then is 1.

    Raises: ConfigError for a configuration that cannot be composed; what a single run raises.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from xomni_rl.config import CONFIG_MODULE, ConfigError, explained, register_resolvers

    if _is_sweep(arguments) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a sweep is started once: leave torchrun or accelerate out; hydra/launcher gives jobs processes")
    register_resolvers()
    failures = Failures()

    @hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="config")
    def application(config: DictConfig) -> None:
        try:
            _run_job(config)
        except Exception as error:
            if wants_traceback() or not is_for_people(error):
                raise
            if failures.elsewhere:
                raise JobFailedError(f"job {_job_number()}: {sentence(error)}") from error
            failures.append(error)  # kept from Hydra, which would print a traceback, and end a sweep
            if _job_number() is not None:
                print_error(error, prefix=f"job {_job_number()}: ")

    with _hydra_environment(arguments):
        try:
            application()
        except (HydraException, OmegaConfBaseException) as error:
            if wants_traceback():
                raise
            raise explained(error) from error
        except RuntimeError as error:
            if "srun" not in str(error):
                raise
            raise ConfigError("there is no Slurm here (no srun): start this where Slurm's commands are") from error
    if failures and _is_sweep(arguments):
        raise typer.Exit(1)
    if failures:
        raise failures[0]


def _run_job(config: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    from xomni_rl.config import validate

    if (number := _job_number()) is not None:
        _join_tasks()
        folder = HydraConfig.get().runtime.output_dir
        typer.echo(f"job {number}: {' '.join(HydraConfig.get().overrides.task)} → {folder}")
        if config.resume is None:
            config.run = folder
            if _was_queued_again() and Path(folder, "manifest.json").exists():
                config.resume = folder
    plain = validate(config)
    from xomni_rl.experiments.run import run_training  # after the checks: it loads torch
    from xomni_rl.policies.algorithms.base import build_algorithm

    build_algorithm(plain["algorithm"]["name"], plain["algorithm"]["options"])  # a wrong option, before weights are loaded
    run_training(plain)


def _job_number() -> int | None:
    """The number of this job in a sweep; None outside of one."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    running = HydraConfig.get()
    return int(running.job.num) if running.mode == RunMode.MULTIRUN else None


def _join_tasks() -> None:
    """Tells the tasks of one submitit job of each other, as torchrun would: they are the processes of one run."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def _was_queued_again() -> bool:
    """Whether Slurm has started this job before: it ran out of time, was preempted, or its machine failed."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def _is_sweep(arguments: Sequence[str]) -> bool:
    return any(argument in ("-m", "--multirun") for argument in arguments)


@contextmanager
def _hydra_environment(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv; with HYDRA_FULL_ERROR it raises its errors instead of printing them and exiting."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["xomni-rl train", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
