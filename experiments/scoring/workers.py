"""Batches scored in this process or in several, each written by whoever scored it.

A batch is always the same images, so its scores do not depend on who scores it. A process that dies is replaced, and its batch
is scored again once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from xomni_rl.commands.errors import is_for_people, sentence
from xomni_rl.experiments.scoring.errors import ScoringError
from xomni_rl.experiments.scoring.matching import Item
from xomni_rl.experiments.scoring.parts import write_part
from xomni_rl.experiments.scoring.scorers import Choice, build_scorers, score_batch

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """A batch: where it is kept and its images."""

    path: Path
    items: Sequence[Item]


def in_this_process(choice: Choice, tasks: Iterator[Task]) -> Iterator[int]:
    """Scores batches one after another; yields the number of images of each once it is kept."""
    scorers = build_scorers(choice)
    for task in tasks:
        write_part(task.path, score_batch(scorers, task.items))
        yield len(task.items)


def in_workers(choice: Choice, tasks: Iterator[Task], workers: int, threads: int, warn: Callable[[str], None]) -> Iterator[int]:
    """Scores batches in processes; yields the number of images of each once it is kept, in no order.

    Args:
        choice: its rewards are built anew in every process.
        tasks: the batches; taken as processes become free.
        workers: processes, each with its share of the cores.
        threads: of each process's arithmetic.
        warn: told when a process dies.
    Raises: ScoringError if a batch's process dies twice, or with the sentence of a process's own error.
    """
    cores = usable_cores()
    share = max(1, len(cores) // workers)
    slices = [cores[(share * n) % len(cores) :][:share] for n in range(workers)]
    pool = [_Worker(choice, each, threads) for each in slices]
    retried: set[Path] = set()
    try:
        for worker in pool:
            worker.take(next(tasks, None))
        while busy := [worker for worker in pool if worker.task is not None]:
            ready = wait([each.connection for each in busy])
            for worker in (each for each in busy if each.connection in ready):
                task = worker.task
                assert task is not None
                if worker.finished():
                    worker.take(next(tasks, None))
                    yield len(task.items)
                    continue
                cause = worker.cause_of_death()
                if task.path in retried:
                    raise ScoringError(
                        f"a process died twice ({cause}) on the images {task.items[0].name} to {task.items[-1].name}: give"
                        " fewer --workers or a smaller --batch-size if memory is short; what is scored is kept"
                    )
                retried.add(task.path)
                warn(f"a process died ({cause}); its images are scored again by a new one")
                pool[pool.index(worker)] = fresh = _Worker(choice, worker.cores, threads)
                fresh.take(task)
    finally:
        for worker in pool:
            worker.stop()


@contextmanager
def arithmetic_threads(count: int) -> Iterator[None]:
    """So many threads for torch's arithmetic in this process, whether torch is loaded already or inside.

    The last bits of a sum depend on how many threads it is divided among, and a table must not depend on who made it.
    """
    given = "OMP_NUM_THREADS" in os.environ
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    with _environment(dict.fromkeys(THREAD_VARIABLES, str(count))):
        if before is not None and not given:
            sys.modules["torch"].set_num_threads(count)
        try:
            yield
        finally:
            if "torch" in sys.modules and not given:
                sys.modules["torch"].set_num_threads(before or len(usable_cores()))


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: respects taskset and containers
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class _Worker:
    """A process, what it works on, and the way to talk to it."""

    process: BaseProcess

    def __init__(self, choice: Choice, cores: Sequence[int], threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.cores = cores
        self.task: Task | None = None
        self.connection, theirs = context.Pipe()
        with _environment(dict.fromkeys(THREAD_VARIABLES, str(threads))):
            self.process = context.Process(target=_work, args=(theirs, choice, cores), daemon=True)
            with _deaf_to_interrupts():
                self.process.start()
        theirs.close()

    def take(self, task: Task | None) -> None:
        self.task = task
        if task is not None:
            try:
                self.connection.send(task)
            except OSError:
                return  # it is dead, which `finished` will find

    def finished(self) -> bool:
        """Whether the task is done; False = the process is dead. Raises: ScoringError with its own error."""
        try:
            kind, text = self.connection.recv()
        except (EOFError, OSError):
            return False
        if kind == "error":
            raise ScoringError(text)
        if kind == "bug":
            raise RuntimeError(f"in a scoring process:\n{text}")
        return True

    def cause_of_death(self) -> str:
        self.process.join(5)
        code = self.process.exitcode
        if code is not None and code < 0:
            return signal.Signals(-code).name
        return f"exit status {code}"

    def stop(self) -> None:
        self.process.kill()
        self.process.join(5)
        self.connection.close()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process that is started inside is spared Ctrl-C until it says otherwise, in its imports too; this one has it after."""
    resource_tracker.ensure_running()  # starting it would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _interrupts_after():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _interrupts_after() -> Iterator[None]:
    """Ctrl-C, which another thread may have caught, is raised after the block: in it half a process would be left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for a process that is started inside; those the user has set stay."""
    added = {key: value for key, value in values.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


def _work(connection: Connection, choice: Choice, cores: Sequence[int]) -> None:
    """A process's life: batches in, a word for each back, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one decides
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # what counts cores for its threads finds its share
    try:
        scorers = build_scorers(choice)
        while True:
            task = connection.recv()
            write_part(task.path, score_batch(scorers, task.items))
            connection.send(("done", ""))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        text = sentence(error) if is_for_people(error) else traceback.format_exc()
        connection.send(("error" if is_for_people(error) else "bug", text))
