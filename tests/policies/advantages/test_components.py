"""GDPO: components normalised on their own, against hand values, loops, and the composite's own normalisation."""

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.advantages import gdpo_advantages, group_advantages
from xomni_rl.rewards.combine import normalise_components

NAN = np.nan


def test_gdpo_matches_hand_values():
    # eps 0. Component 0: 0, 2 → ∓1/√2; component 1: 4, 4 → 0, in group 0.  Group 1: 0, 2 → ∓1/√2 and 0, 9 → ∓1/√2.
    # Weights 1, 3: sums -a, a, -4a, 4a with a = 1/√2; mean 0, squares (1 + 1 + 16 + 16)/2 = 17 over 3 → divided by √(17/3)
    rewards = np.array([[0, 4], [2, 4], [0, 0], [2, 9]], np.float32)
    got = gdpo_advantages(rewards, np.array([1.0, 3.0]), np.array([0, 0, 1, 1]), eps=0.0)
    np.testing.assert_allclose(got, np.array([-1, 1, -4, 4]) * 2**-0.5 / (17 / 3) ** 0.5, rtol=1e-6)


def test_combinations_that_sum_alike_stay_apart_unlike_with_grpo():
    # group 0: (0, 0), (0, 1);  group 1: (0, 0), (1, 1): with equal weights sums 0, 1 and 0, 2, for GRPO both ∓1/√2
    # here group 0: ∓1/√2 from one component, group 1 twice as much from two
    rewards, group = np.array([[0, 0], [0, 1], [0, 0], [1, 1]], np.float32), np.array([0, 0, 1, 1])
    grpo = group_advantages(rewards, np.ones(2), group, eps=0.0)
    np.testing.assert_allclose(grpo[:2], grpo[2:], rtol=1e-6)
    gdpo = gdpo_advantages(rewards, np.ones(2), group, eps=0.0)
    np.testing.assert_allclose(2 * gdpo[:2], gdpo[2:], rtol=1e-6)


def test_component_that_does_not_apply_is_left_out_per_rollout():
    # component 0: 0, 2, 1 → mean 1, std 1 → -1, 1, 0;  component 1 applies to rows 0, 1: 3, 1 → +1/√2, -1/√2 (+0)
    # sums -1 + a, 1 - a, 0 with a = 1/√2, mean 0, std 1 - a → -1, 1, 0; row 3 has nothing
    rewards = np.array([[0, 3], [2, 1], [1, NAN], [NAN, NAN]], np.float32)
    got = gdpo_advantages(rewards, np.ones(2), np.zeros(4, int), eps=0.0)
    np.testing.assert_allclose(got, [-1, 1, 0, NAN], atol=1e-6)


def test_penalty_turns_the_sign_and_logged_component_does_nothing():
    rewards = np.array([[0, 7], [1, NAN], [3, 2]], np.float32)
    group = np.zeros(3, int)
    plain = gdpo_advantages(rewards[:, :1], np.ones(1), group)
    np.testing.assert_array_equal(gdpo_advantages(rewards, np.array([1.0, 0.0]), group), plain)
    np.testing.assert_array_equal(gdpo_advantages(rewards, np.array([-1.0, 0.0]), group), -plain)


def test_logged_component_alone_gives_no_advantage():
    rewards = np.array([[NAN, 7], [1, 1], [3, 2]], np.float32)
    assert np.isnan(gdpo_advantages(rewards, np.array([1.0, 0.0]), np.zeros(3, int))[0])


def test_no_weight_leaves_nothing():
    assert np.isnan(gdpo_advantages(np.ones((2, 1), np.float32), np.zeros(1), np.zeros(2, int))).all()


grid = st.integers(-64, 64).map(lambda value: value / 64)
cell = st.one_of(grid, st.just(NAN))
batches = st.lists(st.tuples(cell, cell, st.integers(0, 2)), min_size=1, max_size=16)


def arrays(batch: list[tuple[float, float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row[:2] for row in batch], np.float32), np.array([row[2] for row in batch])


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


@settings(deadline=None)
@given(batches, st.sampled_from([(1.0, 1.0), (0.3, -2.0), (1.0, 0.0)]))
def test_gdpo_is_what_the_loops_say(batch, weights):
    rewards, group = arrays(batch)
    sums: dict[int, float] = {}
    for row, (*own, label) in enumerate(batch):
        for k in (0, 1):
            if weights[k] and not np.isnan(own[k]):
                mates = [other[k] for other in batch if other[2] == label and not np.isnan(other[k])]
                z = (own[k] - statistics.fmean(mates)) / (deviation(mates) + 1e-4)
                sums[row] = sums.get(row, 0.0) + weights[k] * z
    values = list(sums.values())
    got = gdpo_advantages(rewards, np.array(weights), group)
    for row in range(len(batch)):
        expected = (sums[row] - statistics.fmean(values)) / (deviation(values) + 1e-4) if row in sums else NAN
        np.testing.assert_allclose(got[row], expected, atol=1e-5)


UNEVEN = np.array([1.0, 2.3])
"""Weights under which components cannot cancel each other exactly, so that no deviation is rounding alone."""


@settings(deadline=None)
@given(batches, st.tuples(st.integers(-8, 8), st.integers(-8, 8)), st.sampled_from([(0.5, 4.0), (2.0, 0.25)]))
def test_shift_and_scale_of_each_component_change_nothing(batch, shift, factor):
    rewards, group = arrays(batch)
    moved = rewards * np.float32(factor) + np.float32(shift)
    got, expected = (gdpo_advantages(scores, UNEVEN, group, eps=0.0) for scores in (moved, rewards))
    np.testing.assert_allclose(got, expected, atol=1e-5)


@settings(deadline=None)
@given(batches)
def test_advantages_have_mean_zero_and_deviation_one_over_the_batch(batch):
    rewards, group = arrays(batch)
    got = gdpo_advantages(rewards, UNEVEN, group, eps=0.0)
    scored = got[~np.isnan(got)].astype(np.float64)
    if scored.any():
        assert abs(scored.mean()) < 1e-5
        assert scored.std(ddof=1) == pytest.approx(1.0, abs=1e-5)


@settings(deadline=None)
@given(batches)
def test_composite_that_normalised_by_group_already_changes_nothing(batch):
    # z = d / (s + eps) has deviation s / (s + eps), by which it is divided again
    rewards, group = arrays(batch)
    twice = gdpo_advantages(normalise_components(rewards, group), UNEVEN, group, eps=0.0)
    np.testing.assert_allclose(twice, gdpo_advantages(rewards, UNEVEN, group, eps=0.0), atol=1e-5)


def test_bad_knobs_raise():
    two = np.ones((2, 1), np.float32), np.ones(1), np.zeros(2, int)
    with pytest.raises(ValueError, match="eps must be 0 or more"):
        gdpo_advantages(*two, eps=-1.0)
    with pytest.raises(ValueError, match="weights must be finite"):
        gdpo_advantages(two[0], np.array([np.inf]), two[2])
