"""Means and paired differences of scores: values by hand, intervals against theory, NaN and clusters."""

import math

import numpy as np
import pytest

from xomni_rl.experiments.statistics import mean_interval, paired_difference


def test_interval_is_that_of_the_mean() -> None:
    # 400 coin flips: the mean's standard error is 0.5 / √400 = 0.025, so the interval is about 4·0.025 = 0.098 wide.
    values = np.tile([0.0, 1.0], 200)
    interval = mean_interval(values, seed=0)
    assert interval.mean == 0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.025, rel=0.08)
    assert interval == mean_interval(values, seed=0)
    noise = np.random.default_rng(0).normal(size=20)
    assert mean_interval(noise, seed=0) != mean_interval(noise, seed=1)


def test_nan_takes_no_part() -> None:
    assert mean_interval([0.5, np.nan, 0.5], seed=0) == (0.5, 0.5, 0.5)
    # Of three pairs the second has no a and the third no b: what is left is 1 - 0.25.
    assert paired_difference([1.0, np.nan, 1.0], [0.25, 0.5, np.nan], seed=0).difference == 0.75


def test_nothing_and_one_value_have_no_interval() -> None:
    assert all(math.isnan(each) for each in mean_interval([np.nan], seed=0))
    mean, low, high = mean_interval([0.25], seed=0)
    assert (mean, math.isnan(low), math.isnan(high)) == (0.25, True, True)
    assert all(math.isnan(each) for each in paired_difference([], [], seed=0))
    assert math.isnan(paired_difference([1.0], [0.0], seed=0).probability_better)


def test_values_of_one_cluster_are_drawn_together() -> None:
    # 40 prompts of 10 equal images each: 400 values, but only 40 independent ones, so the error is √10 times larger.
    values = np.repeat(np.tile([0.0, 1.0], 20), 10)
    alone = mean_interval(values, seed=0)
    together = mean_interval(values, seed=0, clusters=np.repeat(np.arange(40), 10))
    assert alone.mean == together.mean == 0.5
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.08)
    assert math.isnan(mean_interval(values, seed=0, clusters=np.zeros(400)).low)  # one prompt says nothing about others


def test_pairs_tell_a_small_steady_difference_apart() -> None:
    hard = np.random.default_rng(0).normal(size=100)  # what prompts differ by is far more than what models differ by
    steady = paired_difference(hard + 0.1, hard, seed=0)
    assert steady.difference == pytest.approx(0.1)
    assert steady.low == pytest.approx(0.1)
    assert steady.probability_better == 1.0
    assert paired_difference(hard, hard + 0.1, seed=0).probability_better == 0.0


def test_equal_models_are_as_likely_better_as_worse() -> None:
    assert paired_difference([0.5, 1.0, 0.0], [0.5, 1.0, 0.0], seed=0) == (0.0, 0.0, 0.0, 0.5)


def test_probability_is_that_of_the_normal_law() -> None:
    # 50 differences with mean 0.1 and deviation 1 (adjusted exactly): P(mean > 0) = Φ(0.1·√50) = Φ(0.707) = 0.760.
    noise = np.random.default_rng(1).normal(size=50)
    differences = 0.1 + (noise - noise.mean()) / noise.std()
    assert paired_difference(differences, np.zeros(50), seed=0).probability_better == pytest.approx(0.760, abs=0.03)


def test_other_forms_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N\] numbers or NaN, got shape \(1, 2\)"):
        mean_interval(np.zeros((1, 2)), seed=0)
    with pytest.raises(ValueError, match="infinity"):
        mean_interval([np.inf], seed=0)
    with pytest.raises(ValueError, match=r"pairs, got shapes \(1,\) and \(2,\)"):
        paired_difference([1.0], [1.0, 2.0], seed=0)
    with pytest.raises(ValueError, match="one label per value"):
        mean_interval([1.0, 2.0], seed=0, clusters=[1])
