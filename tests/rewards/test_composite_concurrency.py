"""A composite's components at the same time: the same result and the same error as one after another."""

import copy
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import FunctionReward, Reward, RewardError, RewardResult, rewards
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeResult, CompositeReward
from xomni_rl.rewards.routing import Route
from xomni_rl.rewards.schedule import Schedule

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
    reward.scored_before |= set(reward.names)  # so that the first call is like any other
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


class Where:
    """A reward that keeps the threads it was called in; with a barrier, its calls must coincide with another's."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.barrier: threading.Barrier | None = None

    def __call__(self, images: Any, prompts: Any) -> list[float]:
        self.threads.append(threading.current_thread().name)
        if self.barrier is not None:
            self.barrier.wait(LONG)
        return [0.5] * len(images)


def two(**options: Any) -> tuple[Where, Where, CompositeReward]:
    """Two rewards, and a composite of them; `options` are those of the second component."""
    first, second = Where(), Where()
    parts = [Component("a", FunctionReward("a", first, {})), Component("b", FunctionReward("b", second, {}), **options)]
    return first, second, CompositeReward(parts)


def test_independent_components_are_scored_at_the_same_time_once_each_has_scored() -> None:
    first, second, reward = two()
    reward(IMAGES, PROMPTS)
    assert {*first.threads, *second.threads} == {threading.current_thread().name}
    first.barrier = second.barrier = threading.Barrier(2)
    np.testing.assert_array_equal(reward(IMAGES, PROMPTS).scores, [0.5] * 3)
    assert threading.current_thread().name not in (first.threads[1], second.threads[1])


def test_component_that_is_asked_for_the_first_time_is_scored_in_turn() -> None:
    first, second, reward = two(when=Route("language == zh"))
    chinese = [*PROMPTS[:2], Prompt("zh", "p", language="zh")]
    for prompts in (PROMPTS, PROMPTS, chinese, chinese):
        reward(IMAGES, prompts)
    here = threading.current_thread().name
    assert [name == here for name in second.threads] == [True, False]
    assert [name == here for name in first.threads] == [True, False, True, False]


def test_composite_of_another_step_has_scored_before_and_a_copy_has_not() -> None:
    _, _, reward = two(schedule=Schedule.parse({0: 1, 10: 0.5}))
    reward.at(1)(IMAGES, PROMPTS)
    assert reward.at(2).scored_before == {"a", "b"}
    assert copy.deepcopy(reward).scored_before == set()


def test_nothing_to_score_leaves_components_to_be_scored_for_the_first_time() -> None:
    _, _, reward = two()
    reward([], [])
    assert reward.scored_before == set()


FIRST_IMPORTS = """
import json, sys
import numpy as np
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import build_composite
assert "torch" not in sys.modules
made = build_composite({"components": json.loads(sys.argv[1])})
for _ in range(2):
    result = made(np.zeros((2, 32, 96, 3), np.uint8), [Prompt("1", "a sign")] * 2)
print(np.isfinite(result.components).all())
"""


@pytest.mark.slow
def test_models_that_import_the_same_packages_load_without_waiting_for_each_other(tmp_path: Path) -> None:
    # Imported for the first time in several threads, torchvision, transformers and open_clip stand still for ever.
    components = {}
    for name in ("pickscore", "clip", "imagereward", "aesthetic"):
        (tmp_path / name).mkdir()
        entry = rewards.get(name)
        assert isinstance(entry, type)
        assert issubclass(entry, Reward)
        components[name] = {"options": entry.write_tiny(tmp_path / name)}
    command = [sys.executable, "-c", FIRST_IMPORTS, json.dumps(components, default=str)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_one_function_under_two_names_is_never_entered_twice() -> None:
    inside = threading.Lock()

    def alone(images: Any, prompts: Any, value: float) -> list[float]:
        assert inside.acquire(blocking=False), "entered twice"
        time.sleep(0.02)
        inside.release()
        return [value] * len(images)

    parts = [Component(f"c{value}", FunctionReward("alone", alone, {"value": value})) for value in (0.0, 1.0)]
    made = CompositeReward([*parts, Component("other", FunctionReward("other", Where(), {}))])
    for _ in range(2):
        np.testing.assert_array_equal(made(IMAGES, PROMPTS).scores, [0.5] * 3)


def test_single_component_is_scored_in_the_callers_thread() -> None:
    where = Where()
    made = CompositeReward([Component("where", FunctionReward("where", where, {}))])
    for _ in range(2):
        made(IMAGES, PROMPTS)
    assert where.threads == [threading.current_thread().name] * 2
