"""Tasks at the same time with the outcome of tasks one after another: results in order, the first failure in order."""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def run_in_lanes(tasks: Sequence[Callable[[], T]], lanes: Sequence[Hashable], most: int | None = None) -> list[T]:
    """Runs tasks in threads; those of one lane one after another, in their order.

    Whatever the timing: if tasks fail, the exception of the first of them in order is raised, as a loop would, once nothing
    runs any more. A task after one that has failed is not begun. An interrupt (Ctrl-C) waits for what is running.

    Args:
        tasks: N tasks.
        lanes: N labels; equal = never at the same time.
        most: threads; None = one per lane. With one there is no thread at all: the tasks run in the caller's.
    Returns: N results.
    """
    queues: dict[Hashable, list[int]] = {}
    for index, lane in enumerate(lanes):
        queues.setdefault(lane, []).append(index)
    threads = min(len(queues), most or len(queues))
    if threads <= 1:
        return [task() for task in tasks]
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def run(queue: list[int]) -> None:
        for index in queue:
            if any(failed < index for failed in list(errors)):
                return
            try:
                results[index] = tasks[index]()
            except BaseException as error:  # also SystemExit: a thread would swallow it
                errors[index] = error
                return

    with ThreadPoolExecutor(threads, thread_name_prefix="reward") as pool:
        try:
            wait([pool.submit(copy_context().run, run, queue) for queue in queues.values()])
        except BaseException as interrupt:
            errors[-1] = interrupt  # before every task: none begins any more, and the pool waits for those that run
            raise
    if errors:
        raise errors[min(errors)]
    return [results[index] for index in range(len(tasks))]
