import pytest
import torch

from xomni_rl.experiments.benchmarks.prefix import check_same, run


def test_both_savings_are_measured_on_the_same_tokens() -> None:
    figures = run(repeats=1, prompt_tokens=24)
    assert figures["ratio"] == pytest.approx(figures["apart_seconds"] / figures["shared_seconds"])
    assert figures["cache_ratio"] == pytest.approx(figures["uncached_seconds"] / figures["cached_seconds"])
    assert figures["cache_ratio"] > 1  # every position is computed again twelve times


def test_ways_that_draw_other_tokens_are_refused() -> None:
    with pytest.raises(RuntimeError, match="no cache: only 50% of the images have the same tokens"):
        check_same(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 5]]), "no cache")
