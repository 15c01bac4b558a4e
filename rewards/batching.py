"""Batching across requests: what arrives while the reward works, or within moments, is scored in its next call.

A call is shared out evenly among the requests that wait, so that a request with one image that comes after one with a
thousand is in the next call. Calls are made one after another in one thread: models take turns anyway.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Sample = TypeVar("Sample")
Answer = TypeVar("Answer")


class ClosedError(RuntimeError):
    """Nothing more is taken: the server is shutting down."""


@dataclass(eq=False)
class _Job(Generic[Sample, Answer]):
    """The samples of one request: how many of them are under way, and their answers so far."""

    samples: Sequence[Sample]
    answers: list[Any]
    done: "asyncio.Future[list[Answer]]"
    taken: int = 0
    answered: int = 0

    @property
    def waiting(self) -> int:
        return 0 if self.done.done() else len(self.samples) - self.taken


class Batcher(Generic[Sample, Answer]):
    """Collects samples of many requests and hands them in batches to a function in a thread.

    Args:
        function: batch → one answer per sample, in order.
        max_batch: samples of one call.
        max_wait_s: how long an idle batcher waits for more samples than one request brings.
    Raises: ValueError for a batch below 1 or a negative wait.
    """

    def __init__(
        self, function: Callable[[list[Sample]], Sequence[Answer]], max_batch: int = 64, max_wait_s: float = 0.002
    ) -> None:
        if max_batch < 1 or max_wait_s < 0:
            raise ValueError(f"max_batch must be at least 1 and max_wait_s not negative, got {max_batch} and {max_wait_s}")
        self.function = function
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self._jobs: list[_Job[Sample, Answer]] = []
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._worker: asyncio.Task[None] | None = None
        self._closing = False

    async def submit(self, samples: Sequence[Sample]) -> list[Answer]:
        """The answers of these samples, in order. If the caller is cancelled, samples not yet under way are dropped.

        Raises: ClosedError after `close`; what the function raises.
        """
        if self._closing:
            raise ClosedError("the server is shutting down")
        if not samples:
            return []
        loop = asyncio.get_running_loop()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        job: _Job[Sample, Answer] = _Job(samples, [None] * len(samples), loop.create_future())
        self._jobs.append(job)
        self._arrived.set()
        return await job.done

    async def close(self) -> None:
        """Answers what is waiting, then takes nothing more."""
        self._closing = True
        self._arrived.set()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._jobs = [job for job in self._jobs if job.waiting]
            if not self._jobs:
                if self._closing:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                await self._linger()
                continue
            batch = self._next_batch()
            samples = [job.samples[position] for job, position in batch]
            try:
                answers = await loop.run_in_executor(self._thread, self.function, samples)
                if len(answers) != len(batch):
                    raise RuntimeError(f"{len(batch)} samples got {len(answers)} answers")
            except Exception as error:
                for job in {id(job): job for job, _ in batch}.values():
                    if not job.done.done():
                        job.done.set_exception(error)
                continue
            for (job, position), answer in zip(batch, answers, strict=True):
                _put(job, position, answer)

    async def _linger(self) -> None:
        """Waits for a full batch, but not longer than `max_wait_s`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.max_wait_s
        while not self._closing and sum(job.waiting for job in self._jobs) < self.max_batch:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), end - loop.time())
            except TimeoutError:
                return

    def _next_batch(self) -> list[tuple[_Job[Sample, Answer], int]]:
        """(request, position of its sample) of the samples of the next call."""
        batch = []
        for job, share in zip(self._jobs, fair_shares([job.waiting for job in self._jobs], self.max_batch), strict=True):
            batch += [(job, job.taken + offset) for offset in range(share)]
            job.taken += share
        return batch


def fair_shares(waiting: Sequence[int], room: int) -> list[int]:
    """How many samples of each request go into a batch of `room`: equally many as far as there are, earlier ones first.

    >>> fair_shares([100, 1, 3], 16)
    [12, 1, 3]
    """
    shares = [0] * len(waiting)
    while room and (hungry := [index for index, count in enumerate(waiting) if shares[index] < count]):
        each = max(1, room // len(hungry))
        for index in hungry[:room]:
            portion = min(each, waiting[index] - shares[index])
            shares[index] += portion
            room -= portion
    return shares


def _put(job: _Job[Sample, Answer], position: int, answer: Answer) -> None:
    job.answers[position] = answer
    job.answered += 1
    if job.answered == len(job.samples) and not job.done.done():
        job.done.set_result(job.answers)
