"""The benchmark of the reward server on a few signs: what it counts, not how fast this machine is."""

import pytest

from xomni_rl.experiments.benchmarks._server import measure


@pytest.mark.slow
def test_served_and_local_scores_are_compared_and_no_request_is_lost() -> None:
    figures = measure(batch=6, repeats=2, concurrent=10, rounds=2)
    assert figures["lost"] == 0
    assert figures["requests"] == 20
    assert len(figures["ratios"]) == 2
    assert 0 < figures["ratio"] < 20
    assert 0 < figures["median_s"] <= figures["p99_s"]
    assert figures["p99_over_median"] == pytest.approx(figures["p99_s"] / figures["median_s"])
    assert figures["memory_mb"] > 50  # a Python process with a model in it
