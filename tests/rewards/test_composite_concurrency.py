"""A composite's components at the same time: the same result and the same error as one after another."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import FunctionReward, RewardError, RewardResult
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeResult, CompositeReward

IMAGES = np.zeros((3, 8, 8, 3), np.uint8)
PROMPTS = [Prompt(f"{index}", "p") for index in range(3)]
LONG = 20  # s; only a test that fails waits so long


def delayed(outcome: str, delay: float, bounds: tuple[float, float] = (0.0, 1.0)) -> Callable[..., RewardResult]:
    """A reward that takes its time: fine; failing on sample 1, with or without a partial result; raising; out of range."""

    def function(images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        time.sleep(delay)
        scores = np.array([int(prompt.id) / 4 for prompt in prompts], np.float32)
        result = RewardResult(scores, [{"id": prompt.id} for prompt in prompts], {"twice": 2 * scores})
        bad = [index for index, prompt in enumerate(prompts) if prompt.id == "1"]
        if outcome == "raises":
            raise ZeroDivisionError(f"{len(images)} images")
        if bad and outcome == "wild":
            scores[bad] = 7.0
        if bad and outcome in ("fails", "partial"):
            raise RewardError("f", dict.fromkeys(bad, outcome), result if outcome == "partial" else None)
        return result

    function.range = bounds  # type: ignore[attr-defined]
    return function


def composite(outcomes: Sequence[str], delays: Sequence[float], **options: Any) -> CompositeReward:
    rewards = [FunctionReward("f", delayed(*pair), {}) for pair in zip(outcomes, delays, strict=True)]
    return CompositeReward([Component(f"c{index}", reward) for index, reward in enumerate(rewards)], **options)


def outcome_of(reward: CompositeReward) -> str:
    """Everything that a caller sees, as text (NaN equals NaN)."""
    try:
        result: CompositeResult = reward(IMAGES, PROMPTS)
    except RewardError as error:
        return f"{error} {error.failures} {error.__cause__!r} {error.partial}"
    return repr(vars(result))


@settings(deadline=None, max_examples=40)
@given(
    outcomes=st.lists(st.sampled_from(["fine", "fine", "fails", "partial", "raises", "wild"]), min_size=2, max_size=4),
    delays=st.permutations([0.0, 0.002, 0.004, 0.006]),
    on_failure=st.sampled_from(["stop", "drop"]),
)
def test_outcome_is_that_of_one_after_another_whatever_the_timing(
    outcomes: list[str], delays: list[float], on_failure: str
) -> None:
    delays = delays[: len(outcomes)]
    alone = outcome_of(composite(outcomes, delays, on_failure=on_failure, concurrency=1))
    for concurrency in (None, 2):
        assert outcome_of(composite(outcomes, delays, on_failure=on_failure, concurrency=concurrency)) == alone


def test_independent_components_are_scored_at_the_same_time() -> None:
    barrier = threading.Barrier(2)

    def meets(images: Any, prompts: Any) -> list[float]:
        barrier.wait(LONG)
        return [0.5] * len(images)

    def meets_too(images: Any, prompts: Any) -> list[float]:
        return meets(images, prompts)

    parts = [Component(f.__name__, FunctionReward(f.__name__, f, {})) for f in (meets, meets_too)]
    np.testing.assert_array_equal(CompositeReward(parts)(IMAGES, PROMPTS).scores, [0.5] * 3)


def test_one_function_under_two_names_is_never_entered_twice() -> None:
    inside = threading.Lock()

    def alone(images: Any, prompts: Any, value: float) -> list[float]:
        assert inside.acquire(blocking=False), "entered twice"
        time.sleep(0.02)
        inside.release()
        return [value] * len(images)

    parts = [Component(f"c{value}", FunctionReward("alone", alone, {"value": value})) for value in (0.0, 1.0)]
    np.testing.assert_array_equal(CompositeReward(parts)(IMAGES, PROMPTS).scores, [0.5] * 3)


def test_single_component_is_scored_in_the_callers_thread() -> None:
    threads = []

    def where(images: Any, prompts: Any) -> list[float]:
        threads.append(threading.current_thread())
        return [0.0] * len(images)

    CompositeReward([Component("where", FunctionReward("where", where, {}))])(IMAGES, PROMPTS)
    assert threads == [threading.current_thread()]
