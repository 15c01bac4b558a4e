"""Batching across requests: what is scored together, in which order, and what a failing, leaving or closing one does."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xomni_rl.rewards.batching import Batcher, ClosedError, fair_shares


class Recorder:
    """Doubles numbers in batches, each of which waits for `go`; a negative number breaks its batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Semaphore(0)

    def __call__(self, batch: list[int]) -> list[int]:
        assert self.go.acquire(timeout=10), "never let go"
        self.batches.append(batch)
        if min(batch) < 0:
            raise ValueError("negative")
        return [2 * number for number in batch]


def run(work: Callable[[Recorder], Coroutine[Any, Any, None]]) -> Recorder:
    recorder = Recorder()
    asyncio.run(asyncio.wait_for(work(recorder), 20))
    return recorder


def later(work: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(work)


async def a_moment() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


def test_requests_that_come_together_are_scored_together() -> None:
    async def work(recorder: Recorder) -> None:
        batcher = Batcher(recorder, max_batch=10, max_wait_s=0.05)
        requests = [later(batcher.submit([number, number + 10])) for number in range(3)]
        recorder.go.release()
        assert await asyncio.gather(*requests) == [[0, 20], [2, 22], [4, 24]]

    assert run(work).batches == [[0, 10, 1, 11, 2, 12]]


def test_what_comes_while_the_reward_works_is_scored_next() -> None:
    async def work(recorder: Recorder) -> None:
        batcher = Batcher(recorder, max_batch=10, max_wait_s=0.0)
        requests = [later(batcher.submit([1]))]
        await a_moment()
        requests += [later(batcher.submit([number])) for number in (2, 3)]
        await a_moment()
        recorder.go.release(2)
        assert await asyncio.gather(*requests) == [[2], [4], [6]]

    assert run(work).batches == [[1], [2, 3]]


def test_large_request_is_divided_and_its_answers_come_in_order() -> None:
    async def work(recorder: Recorder) -> None:
        recorder.go.release(100)
        assert await Batcher(recorder, max_batch=4).submit(range(10)) == [2 * number for number in range(10)]

    assert [len(batch) for batch in run(work).batches] == [4, 4, 2]


def test_small_request_after_a_large_one_is_in_the_next_call() -> None:
    async def work(recorder: Recorder) -> None:
        batcher = Batcher(recorder, max_batch=4, max_wait_s=0.0)
        large = later(batcher.submit(range(1000)))
        await a_moment()
        small = later(batcher.submit([5000]))
        await a_moment()
        recorder.go.release(2)  # one call for what was under way, one for both
        assert await small == [10_000]
        assert not large.done()
        recorder.go.release(1000)
        assert await large == [2 * number for number in range(1000)]

    assert run(work).batches[:2] == [[0, 1, 2, 3], [4, 5, 6, 5000]]


def test_full_batch_does_not_wait_for_more() -> None:
    async def work(recorder: Recorder) -> None:
        recorder.go.release()
        batcher = Batcher(recorder, max_batch=3, max_wait_s=60)
        assert await asyncio.wait_for(batcher.submit([1, 2, 3]), 5) == [2, 4, 6]

    run(work)


def test_broken_batch_fails_its_requests_and_no_others() -> None:
    async def work(recorder: Recorder) -> None:
        batcher = Batcher(recorder, max_batch=2, max_wait_s=0.01)
        recorder.go.release(10)
        bad, good = later(batcher.submit([1, -1, 7, 8])), later(batcher.submit([2]))
        with pytest.raises(ValueError, match="negative"):
            await bad
        assert await good == [4]
        assert await batcher.submit([3]) == [6]

    # one place each in the first call; then −1 and the rest of its own request only
    assert run(work).batches == [[1, 2], [-1, 7], [3]]


def test_function_that_loses_answers_is_an_error() -> None:
    async def work(recorder: Recorder) -> None:
        with pytest.raises(RuntimeError, match="2 samples got 1 answers"):
            await Batcher(lambda batch: batch[:1]).submit([1, 2])

    run(work)


def test_samples_of_a_request_that_has_gone_are_not_scored() -> None:
    async def work(recorder: Recorder) -> None:
        batcher = Batcher(recorder, max_batch=2, max_wait_s=0.0)
        gone = later(batcher.submit([1, 2, 3, 4]))
        await a_moment()
        stays = later(batcher.submit([5]))
        gone.cancel()
        recorder.go.release(5)
        assert await stays == [10]

    assert run(work).batches == [[1, 2], [5]]


def test_closing_answers_what_waits_and_takes_nothing_more() -> None:
    async def work(recorder: Recorder) -> None:
        batcher = Batcher(recorder, max_batch=2, max_wait_s=0.0)
        waiting = later(batcher.submit([1, 2, 3]))
        await a_moment()
        closing = later(batcher.close())
        await a_moment()
        with pytest.raises(ClosedError):
            await batcher.submit([4])
        recorder.go.release(2)
        await closing
        assert await waiting == [2, 4, 6]

    assert run(work).batches == [[1, 2], [3]]


def test_nothing_to_score_calls_nothing() -> None:
    async def work(recorder: Recorder) -> None:
        assert await Batcher(recorder).submit([]) == []

    assert run(work).batches == []


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"max_wait_s": -1.0}])
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="max_batch must be at least 1"):
        Batcher(len, **options)


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 30))
def test_shares_fill_the_batch_and_are_as_equal_as_can_be(waiting: list[int], room: int) -> None:
    shares = fair_shares(waiting, room)
    assert sum(shares) == min(room, sum(waiting))
    assert all(0 <= share <= count for share, count in zip(shares, waiting, strict=True))
    # nobody who still waits got less than another, but for the one that integer division leaves over
    unfed = [share for share, count in zip(shares, waiting, strict=True) if share < count]
    assert not unfed or max(shares) - min(unfed) <= 1
