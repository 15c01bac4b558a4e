"""Runs an ablation's runs, each in a process of its own, several at a time; retries, resumes, and stops them cleanly."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from xomni_rl.experiments.ablation.display import Display
from xomni_rl.experiments.ablation.plan import PLAN, AblationError, Plan, PlannedRun, config_hash, quoted
from xomni_rl.experiments.report.data import read_json, read_yaml
from xomni_rl.locks import try_lock
from xomni_rl.policies.records import RunFolder, write_json
from xomni_rl.policies.settings import changed_settings

LOG = "train.log"
LOCK = ".lock"
ENDED = ("finished", "max_seconds")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATIENCE = {signal.SIGINT: 20.0, signal.SIGTERM: 5.0, signal.SIGKILL: 5.0}
"""Signals that a run is stopped by, in turn, and seconds until the next one."""
LOOK_EVERY = 0.25  # seconds


@dataclass(frozen=True)
class Machine:
    """How the runs share the machine.

    Attributes:
        jobs: runs at a time.
        threads: of each.
        cores: of this process; a run gets `threads` of them to itself as long as they suffice.
        devices: GPUs as CUDA_VISIBLE_DEVICES names them, one run's each in turn; () = none.
    """

    jobs: int
    threads: int
    cores: tuple[int, ...]
    devices: tuple[str, ...] = ()

    @classmethod
    def shared(cls, jobs: int | None, runs: int, *, devices: Sequence[str] = (), cores: Sequence[int] | None = None) -> Machine:
        """The machine for a number of runs; `jobs` None = one per GPU, without a GPU one per core.

        Args:
            jobs: runs at a time, as asked for.
            runs: of the ablation.
            devices: its GPUs.
            cores: its cores; None = those this process may use.
        Raises: AblationError for a number of jobs below 1.
        """
        if jobs is not None and jobs < 1:
            raise AblationError(f"--jobs must be at least 1, but is {jobs}")
        if cores is None:
            cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        jobs = max(1, min(jobs or len(devices) or len(cores), runs))
        return cls(jobs, max(1, len(cores) // jobs), tuple(cores), tuple(devices))

    def environment(self, slot: int) -> dict[str, str]:
        """Variables of a run in that slot."""
        found = dict.fromkeys(THREAD_VARIABLES, str(self.threads)) | {"PYTHONUNBUFFERED": "1"}
        if self.devices:
            found["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        return found

    def pin(self, process: int, slot: int) -> None:
        """Gives a run cores of its own, so that runs do not slow each other and their seconds compare; Linux only."""
        own = self.cores[slot * self.threads : (slot + 1) * self.threads]
        if len(own) == self.threads and hasattr(os, "sched_setaffinity"):
            with suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(process, own)


@dataclass
class Worker:
    """A run at work."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    slot: int
    began: float


class Executor:
    """Runs what is not finished yet, and keeps `ablation.json` up to date.

    Args:
        folder: of the ablation.
        plan: of the folder; its runs' states change here.
        runs: those to run.
        configs: a run's folder → its resolved configuration.
        machine: how runs share the machine.
        retries: how often a run that crashed is tried again.
        flags: options of `xomni-rl train` (`--config-dir …`).
        display: what a person sees.
    Raises: AblationError if a folder holds another run.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        runs: Sequence[PlannedRun],
        configs: Mapping[str, Mapping[str, Any]],
        machine: Machine,
        *,
        retries: int,
        flags: Sequence[str],
        display: Display,
    ) -> None:
        self.folder, self.plan, self.runs, self.configs, self.machine = folder, plan, list(runs), configs, machine
        self.retries, self.flags, self.display = retries, list(flags), display
        self.workers: list[Worker] = []
        self.tried: dict[str, int] = {}
        self.todo = [run for run in runs if not self._is_done(run)]

    def execute(self) -> None:
        """Runs everything to its end.

        Raises: AblationError if another ablation is at work in the folder; KeyboardInterrupt if interrupted, once nothing runs
            any more.
        """
        waiting = list(self.todo)
        with locked(self.folder) as lock, stoppable(), self.display:
            for run in waiting:
                run.status, run.error = "waiting", None
            self.save()
            try:
                while waiting or self.workers:
                    while waiting and len(self.workers) < self.machine.jobs:
                        self._start(waiting.pop(0), lock)
                    time.sleep(LOOK_EVERY)
                    ended = [self._look(worker) for worker in list(self.workers)]
                    waiting += [run for run in ended if run is not None]
                    self.display.refresh(self.runs, {w.run.folder: time.monotonic() - w.began for w in self.workers})
            finally:
                self._stop_all()
                self.save()

    def save(self) -> None:
        """Writes the plan with its states. Raises: RunFolderError if it cannot be written."""
        write_json(self.folder / PLAN, self.plan.record())

    def command(self, run: PlannedRun) -> list[str]:
        """Arguments of `xomni-rl` that begin the run or, if it was begun, go on with it."""
        path = str(self.folder / run.folder)
        if RunFolder(path).holds_run:
            return ["train", *self.flags, f"resume={quoted(path)}"]
        return ["train", *self.flags, *run.overrides, f"run={quoted(path)}"]

    def _is_done(self, run: PlannedRun) -> bool:
        """Whether the run came to its end in an earlier call. Raises: AblationError if its folder holds another run."""
        path = self.folder / run.folder
        config = read_yaml(path / "config.yaml")
        if config and config_hash(config) != run.config_sha256:
            changes = list(changed_settings(config, self.configs[run.folder]).items())
            words = "; ".join(f"{key} is {before!r} there and {after!r} here" for key, (before, after) in changes[:3])
            raise AblationError(f"{path} holds a run of other settings ({words}); move it away, or choose another run=FOLDER")
        status = read_json(path / "summary.json").get("status")
        if status in ENDED or (status and status == run.status):
            run.status, run.error = status, None
            return True
        return False

    def _start(self, run: PlannedRun, lock: IO[str]) -> None:
        slot = next(number for number in range(self.machine.jobs) if number not in [worker.slot for worker in self.workers])
        path = self.folder / run.folder
        path.mkdir(parents=True, exist_ok=True)
        command = self.command(run)
        resumed = command[-1].startswith("resume=")
        with (path / LOG).open("ab") as log:
            log.write(f"$ xomni-rl {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "xomni_rl.experiments.ablation.worker", str(os.getpid()), *command],
                env=os.environ | self.machine.environment(slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends its runs in order
                pass_fds=(lock.fileno(),),  # the folder stays locked as long as anything writes to it
            )
        self.machine.pin(process.pid, slot)
        self.workers.append(Worker(run, process, slot, time.monotonic()))
        self.tried[run.folder] = self.tried.get(run.folder, 0) + 1
        run.status, run.attempts = "running", run.attempts + 1
        self.save()
        self.display.say(f"{run.label}: {'going on' if resumed else 'started'}")

    def _look(self, worker: Worker) -> PlannedRun | None:
        """Deals with a run whose process has ended. Returns: the run, if it is to be tried again."""
        code = worker.process.poll()
        if code is None:
            return None
        run = worker.run
        self.workers.remove(worker)
        run.seconds += time.monotonic() - worker.began
        summary = read_json(self.folder / run.folder / "summary.json")
        again = False
        if code == 0 and "status" in summary:
            run.status, run.error = str(summary["status"]), None
            self.display.say(f"{run.label}: {run.status} in {run.seconds:.0f} s{self.display.figures(summary)}")
        else:
            run.error = why(code, self.folder / run.folder / LOG)
            again = self.tried[run.folder] <= self.retries
            self.display.say(f"{run.label}: crashed ({run.error}){'; trying again' if again else ''}", bad=True)
            run.status = "waiting" if again else "failed"
        self.save()
        return run if again else None

    def _stop_all(self) -> None:
        """Ends what runs, gently first; nothing to do after an orderly end."""
        for number, patience in PATIENCE.items():
            for worker in self.workers:
                if worker.process.poll() is None:
                    worker.process.send_signal(number)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and any(worker.process.poll() is None for worker in self.workers):
                time.sleep(0.05)
        for worker in list(self.workers):
            if worker.process.poll() == 0:
                self._look(worker)  # it ended of itself just now
            else:
                worker.run.status = "interrupted"
                worker.run.seconds += time.monotonic() - worker.began
        self.workers.clear()


def why(code: int, log: Path) -> str:
    """What a run died of: the last line of its log, and the signal if one killed it."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("$ ")]
    last = lines[-1].removeprefix("error: ") if lines else "its log is empty"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; last line of its log: {last}"
    return last


def gpus(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The GPUs that runs may use, as CUDA_VISIBLE_DEVICES names them; [] if there are none or all run on the CPU."""
    if all((config.get("model") or {}).get("device") == "cpu" for config in configs):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Holds the folder for this ablation and its runs. Raises: AblationError if another one does."""
    with (folder / LOCK).open("w") as file:
        for _ in range(12):  # the runs of an ablation that was killed need a moment to end
            if try_lock(file):
                break
            time.sleep(LOOK_EVERY)
        else:
            raise AblationError(f"another ablation is at work in {folder}: wait for it, or end it first")
        yield file


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, inside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
