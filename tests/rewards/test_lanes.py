"""Tasks at the same time: results and errors as one after another would give them, whatever the timing; nothing left behind."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from xomni_rl.rewards.lanes import run_in_lanes

LONG = 20  # s; only a test that fails waits so long


def others() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("reward")}


def test_tasks_of_different_lanes_run_at_the_same_time_and_results_keep_their_order() -> None:
    barrier = threading.Barrier(3)  # each waits until all three are there
    tasks: list[Callable[[], int]] = [lambda i=i: barrier.wait(LONG) * 0 + i for i in range(3)]  # type: ignore[misc]
    assert run_in_lanes(tasks, "abc") == [0, 1, 2]
    assert others() == set()


def test_tasks_of_one_lane_run_one_after_another_in_order() -> None:
    running, seen = threading.Lock(), []

    def task(index: int) -> None:
        assert running.acquire(blocking=False), "two tasks of one lane at the same time"
        seen.append(index)
        time.sleep(0.01)
        running.release()

    run_in_lanes([lambda i=i: task(i) for i in range(4)] + [lambda: None], ["a"] * 4 + ["b"])  # type: ignore[misc]
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_tasks_run_at_a_time_than_allowed(most: int) -> None:
    now, peak, lock = 0, 0, threading.Lock()

    def task() -> str:
        nonlocal now, peak
        with lock:
            now += 1
            peak = max(peak, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        return threading.current_thread().name

    names = run_in_lanes([task] * 5, range(5), most)
    assert peak == most
    assert (set(names) == {threading.current_thread().name}) is (most == 1)


@pytest.mark.parametrize("first_is_slow", [True, False])
def test_first_failure_in_order_is_raised_whichever_comes_first_in_time(first_is_slow: bool) -> None:
    other_failed = threading.Event()

    def first() -> None:
        if first_is_slow:
            assert other_failed.wait(LONG)
        raise ValueError("first")

    def second() -> None:
        other_failed.set()
        raise KeyError("second")

    with pytest.raises(ValueError, match="first"):
        run_in_lanes([first, second], "ab")
    assert others() == set()


def test_failure_is_raised_only_when_nothing_runs_any_more() -> None:
    begun, ended = threading.Event(), []

    def fails() -> None:
        assert begun.wait(LONG)
        raise ValueError("early")

    def goes_on() -> None:
        begun.set()
        time.sleep(0.1)
        ended.append(True)

    with pytest.raises(ValueError, match="early"):
        run_in_lanes([fails, goes_on], "ab")
    assert ended == [True]


def test_tasks_after_a_failed_one_are_not_begun_and_those_before_it_are() -> None:
    failed, begun = threading.Event(), []

    def waits(index: int) -> None:
        assert failed.wait(LONG)
        time.sleep(0.25)  # until the failure is noted
        begun.append(index)

    def fails() -> None:
        failed.set()
        raise ValueError("task 2")

    tasks: list[Callable[[], Any]] = [lambda: waits(0), lambda: waits(1), fails, lambda: begun.append(3)]
    with pytest.raises(ValueError, match="task 2"):
        run_in_lanes(tasks, "aaba")
    assert begun == [0, 1]


def test_exit_in_a_task_is_not_swallowed() -> None:
    def leaves() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run_in_lanes([leaves, lambda: None], "ab")


def test_interrupt_waits_for_what_runs_and_begins_nothing_more() -> None:
    begun, ended = threading.Event(), []

    def slow() -> None:
        begun.set()
        time.sleep(0.2)
        ended.append("slow")

    def interrupts() -> None:
        assert begun.wait(LONG)
        os.kill(os.getpid(), signal.SIGINT)

    tasks: list[Callable[[], Any]] = [slow, interrupts, lambda: ended.append("never")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_lanes(tasks, "aba")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == ["slow"]
    assert others() == set()
