"""`xomni-rl train -m hydra/launcher=ray …`: every job of a sweep is a task on a Ray cluster, or on this machine.

A task is handed the words of a command line, and its process does what `xomni-rl train` does with them. So nothing of ours has
to be pickled, and a job whose process dies takes no other with it. What is asked of the cluster: xomni-rl is installed on its
machines, and the working directory lies on a disk they share. Keys and launch line: `conf/hydra/launcher/ray.yaml`.
"""

from __future__ import annotations

import importlib
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import typer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from xomni_rl.commands.errors import is_for_people, sentence, wants_traceback
from xomni_rl.commands.train import JobFailedError, run_application

PLACE = "hydra_plugins.xomni_rl"
"""Where Hydra is told the launcher stands: it makes launchers of modules below `hydra_plugins` alone."""

OWN_GROUPS = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep")
"""Hydra's settings that are about the sweep, and so not a job's."""


class RayUnavailableError(RuntimeError):
    """Ray is not installed, or cannot be reached; the message says what to do."""


class RayLauncher(Launcher):
    """Runs the jobs of a sweep as Ray tasks, as many at a time as the cluster has room for.

    Args:
        cpus, gpus: of one job; a fraction of a GPU shares it.
        address: of the cluster: "auto", "ray://HOST:10001", …; None = RAY_ADDRESS, else one that runs here, else a new one
            that ends with the sweep.
        runtime_env: Ray's, for the jobs' processes: {"env_vars": {…}}, {"pip": […]}, ….
    """

    __module__ = PLACE

    def __init__(self, cpus: float, gpus: float, address: str | None, runtime_env: Mapping[str, Any]) -> None:
        self.resources = {"num_cpus": float(cpus), "num_gpus": float(gpus)}
        self.address = address
        self.runtime_env = OmegaConf.to_container(runtime_env) if OmegaConf.is_config(runtime_env) else dict(runtime_env)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs to their ends. Raises: JobFailedError naming every job that failed; RayUnavailableError."""
        ray = connected_ray(self.address)
        task = ray.remote(**self.resources, runtime_env=self.runtime_env, max_calls=1, max_retries=0)(train_in_task)
        jobs = list(enumerate(map(list, job_overrides), initial_job_idx))
        failed: dict[int, str] = {}
        try:
            running = {task.remote(os.getcwd(), self._words(number, overrides)): number for number, overrides in jobs}
            while running:
                [done], _ = ray.wait(list(running), num_returns=1)
                number = running.pop(done)
                why = outcome(ray, done)
                typer.echo(f"job {number}: {'finished' if why is None else 'failed'}")
                failed |= {} if why is None else {number: why}
        finally:
            ray.shutdown()
        if failed:
            reasons = "; ".join(f"job {number}: {failed[number]}" for number in sorted(failed))
            raise JobFailedError(f"{len(failed)} of {len(jobs)} jobs failed: {reasons}")
        return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for _, overrides in jobs]

    def _words(self, number: int, overrides: list[str]) -> list[str]:
        """The words after `xomni-rl train` of one job: its overrides, with a run folder of its own."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        config.hydra.job.num, config.hydra.job.id = number, str(number)
        folder = str(Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir)
        own = [override for override in config.hydra.overrides.hydra if not override.startswith(OWN_GROUPS)]
        words = [override for override in overrides if not override.startswith("run=")] + own
        if config.resume is None:
            words.append(f"run={quoted(folder)}")
        typer.echo(f"job {number}: {' '.join(overrides)} → {folder}")
        return [*self._options(), *words]

    def _options(self) -> list[str]:
        """`--config-dir` and `--config-name` as they were given."""
        folders = [source.path for source in self.config.hydra.runtime.config_sources if source.provider == "command-line"]
        name = self.config.hydra.job.config_name
        options = [word for folder in folders for word in ("--config-dir", folder)]
        return options if name == "config" else [*options, "--config-name", name]


def train_in_task(folder: str, words: list[str]) -> str | None:
    """`xomni-rl train WORDS` in this process, in a working directory.

    Returns: the sentence of an error that speaks to people; None if all went well.
    Raises: any other error.
    """
    os.chdir(folder)
    try:
        run_application(words)
    except Exception as error:
        if wants_traceback() or not is_for_people(error):
            raise
        return sentence(error)
    return None


def outcome(ray: Any, task: Any) -> str | None:
    """Why a task that ended failed; None if it did not."""
    try:
        why: str | None = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}" if error.cause is not None else str(error)
    except ray.exceptions.RayError as error:
        return f"its process died ({sentence(error)}); go on with it by resume="
    return why


def connected_ray(address: str | None) -> Any:
    """The module `ray`, connected. Raises: RayUnavailableError if it is missing or there is nothing at the address."""
    try:
        import ray
    except ImportError as error:
        raise RayUnavailableError("hydra/launcher=ray needs Ray: pip install 'xomni-rl[ray]'") from error
    try:
        if address and (place := urlsplit(address if "://" in address else f"//{address}")).port:
            socket.create_connection((place.hostname, place.port), timeout=10).close()  # Ray itself would try for minutes
        ray.init(address=address, include_dashboard=None if address else False, logging_level="warning")
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise RayUnavailableError(f"Ray cannot be reached at {address or 'this machine'}: {sentence(error)}") from error
    return ray


def quoted(value: str) -> str:
    """A value as Hydra's grammar takes it, whatever characters are in it."""
    # Its quotes are escaped, and the backslashes before a quote; others stand for themselves.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + (found[2] and "\\'"), value)
    return f"'{escaped}'"


def register_ray_launcher() -> None:
    """Makes the launcher known to Hydra; doing it again changes nothing."""
    plugins = Plugins.instance()
    with suppress(ImportError):  # there is no such package if no plug-in is installed
        importlib.import_module("hydra_plugins")
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    vars(sys.modules.setdefault(PLACE, ModuleType(PLACE)))[RayLauncher.__name__] = RayLauncher
    plugins.register(RayLauncher)
