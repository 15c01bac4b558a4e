import numpy as np
import pytest

from xomni_rl.experiments.evaluation.figures import ratio_difference, ratio_interval
from xomni_rl.experiments.statistics import mean_interval, paired_difference

ONE = np.ones(40)


def scores(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=40)


def labels() -> list[str]:
    return [f"{index // 4:02d}" for index in range(40)]


def test_mean_is_that_of_the_shared_statistics():
    """A ratio whose bottom is 1 is a mean, and the draws are the same."""
    values = np.where(np.arange(40) % 7 == 0, np.nan, scores(0))
    assert ratio_interval(values, ONE, labels(), seed=3) == pytest.approx(
        mean_interval(values, 3, clusters=labels()), abs=1e-12
    )


def test_paired_difference_is_that_of_the_shared_statistics():
    a, b = scores(0), scores(1)
    ours = ratio_difference((a, ONE), (b, ONE), labels(), seed=3)
    theirs = paired_difference(a, b, 3, clusters=labels())
    # Means of differences and differences of means may differ in the last digit, so no tie is decided otherwise.
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_ratio_is_sum_over_sum():
    # (1 + 9) / (2 + 10), not the mean of 1/2 and 9/10
    found = ratio_interval(np.array([1.0, 9.0]), np.array([2.0, 10.0]), ["a", "b"])
    assert found.mean == pytest.approx(10 / 12)
    assert found.low == pytest.approx(1 / 2)  # both draws are a
    assert found.high == pytest.approx(9 / 10)


def test_groups_count_alike_whatever_their_size():
    # Group x: 3 of 3; group y: 0 of 1 and 0 of 1 -> (1 + 0) / 2, where the plain mean is 3/5. No draw can change either.
    found = ratio_interval(np.array([1.0, 1, 1, 0, 0]), np.ones(5), list("abcde"), list("xxxyy"))
    assert found == (0.5, 0.5, 0.5)


def test_interval_of_groups_is_that_of_independent_draws():
    """Variance of the mean of two independent means: (0.25/50 + 0.25/200) / 4."""
    top = np.concatenate([np.tile([0.0, 1.0], 25), np.tile([0.0, 1.0], 100)])
    found = ratio_interval(top, np.ones(250), range(250), ["x"] * 50 + ["y"] * 200)
    half = 1.96 * np.sqrt((0.25 / 50 + 0.25 / 200) / 4)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.08)  # 2,000 draws


@pytest.mark.parametrize(
    ("top", "bottom", "mean"),
    [([], [], np.nan), ([np.nan], [1.0], np.nan), ([0.0, 0.0], [0.0, 0.0], np.nan), ([1.0], [2.0], 0.5)],
)
def test_too_little_to_resample_has_no_interval(top: list[float], bottom: list[float], mean: float):
    found = ratio_interval(np.array(top), np.array(bottom), range(len(top)))
    assert found == pytest.approx((mean, np.nan, np.nan), nan_ok=True)


def test_pairs_leave_out_what_either_lacks():
    a, b = np.array([1.0, 0.5, np.nan]), np.array([0.0, np.nan, 1.0])
    found = ratio_difference((a, np.ones(3)), (b, np.ones(3)), ["p", "q", "r"])
    assert found.difference == 1.0
    assert np.isnan(found.low)


def test_other_lengths_are_refused():
    with pytest.raises(ValueError, match="one cluster and group per sample"):
        ratio_interval(np.ones(2), np.ones(2), ["a"])
