"""The benchmark of concurrent components: what it returns, and that waiting for a judge costs no more than the wait."""

import time

import numpy as np
import pytest

from xomni_rl.experiments.benchmarks import _composite
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward


@pytest.mark.slow
def test_figures_add_up() -> None:
    found = _composite.measure(count=8, repeats=1)
    seconds = found["seconds"]
    slowest = max(value for name, value in seconds.items() if name not in ("together", "in turn"))
    assert found["ratio"] == pytest.approx(seconds["together"] / slowest, rel=0.02)  # seconds are rounded
    assert found["sequential_ratio"] == pytest.approx(seconds["in turn"] / slowest, rel=0.02)
    assert set(seconds) == {"ocr", "clip", "rules", "ocr_heldout", "judge", "together", "in turn"}
    assert found["over_bound"] == pytest.approx(found["ratio"] / max(1, found["core_bound"]))
    assert found["memory_mb"] > 10


def test_two_judges_are_waited_for_at_the_same_time() -> None:
    with _composite.judge(0.3) as first, _composite.judge(0.3) as second:
        parts = [first, Component("other", second.reward)]
        prompts = [Prompt("0", "p")]
        images = np.zeros((1, 8, 8, 3), np.uint8)
        made = CompositeReward(parts)
        made(images, prompts)  # the first time is one after another
        began = time.perf_counter()
        scores = made(images, prompts).components
        together = time.perf_counter() - began
    assert scores.tolist() == [[0.5, 0.5]]
    assert 0.3 <= together < 0.55  # one after another they take at least 0.6 s
