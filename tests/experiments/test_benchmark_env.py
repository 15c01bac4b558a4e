"""The environment's benchmark on a tiny random stack: same images on both sides, figures that belong together."""

import numpy as np
import pytest

from xomni_rl.experiments.benchmarks.env import Clock, check_same, run
from xomni_rl.stack.stack import Stack


def test_benchmark_returns_ratio_and_what_it_is_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(Stack.tiny_random(seed=0), batch=4, repeats=2)
    assert result["overhead"] == pytest.approx(result["ratio"] - 1)
    assert set(result["seconds"]["bare"]) == {"sample", "decode", "reward", "total"}
    assert set(result["seconds"]["env"]) == {"reset", "sample", "step", "last step", "total"}
    assert "environment, s" in capsys.readouterr().out


def test_sides_that_differ_are_refused() -> None:
    tokens, scores = np.zeros((2, 3), dtype=np.int64), np.zeros(2, dtype=np.float32)
    check_same((tokens, scores), (tokens.copy(), scores.copy()))
    with pytest.raises(RuntimeError, match="1 of 2 images"):
        check_same((tokens, scores), (np.array([[0, 0, 0], [0, 1, 0]]), scores))


def test_laps_add_up_to_the_total() -> None:
    clock = Clock()
    for name in ("a", "b", "a"):
        clock.lap(name)
    parts = clock.parts()
    assert parts["total"] == pytest.approx(parts["a"] + parts["b"], abs=1e-9)
