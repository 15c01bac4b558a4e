"""Advantages that only say which rollouts were chosen."""

import numpy as np
import pytest

from xomni_rl.policies.advantages import best_indicator_advantages, preference_advantages

NAN = np.nan
ONE = np.ones(1, np.float32)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_best_and_worst_of_each_group_are_the_pair():
    # group 7: 1, 5, NaN, 3;  group 2: 4, 2
    rewards, group = column(1, 4, 5, NAN, 2, 3), np.array([7, 2, 7, 7, 2, 7])
    np.testing.assert_array_equal(preference_advantages(rewards, ONE, group), [-1, 1, 1, NAN, -1, 0])


def test_of_equal_rewards_the_earliest_is_best_and_the_last_is_worst():
    got = preference_advantages(column(1, 3, 3, 1, 1), ONE, np.zeros(5, int))
    np.testing.assert_array_equal(got, [0, 1, 0, 0, -1])


def test_groups_with_nothing_to_prefer_have_no_pair():
    # group 0 equal, group 1 of one, group 2 with one reward
    got = preference_advantages(column(2, 2, 5, 5, NAN), ONE, np.array([0, 0, 1, 2, 2]))
    np.testing.assert_array_equal(got, [0, 0, 0, 0, NAN])


def test_best_of_each_group_is_marked_if_better_than_the_worst():
    # group 0: 1, 5, 3;  group 1: 2, 2;  group 2: 4 and NaN
    got = best_indicator_advantages(column(1, 5, 3, 2, 2, 4, NAN), ONE, np.array([0, 0, 0, 1, 1, 2, 2]))
    np.testing.assert_array_equal(got, [0, 1, 0, 0, 0, 0, NAN])


def test_best_of_each_group_is_marked_if_it_reaches_the_least_reward():
    # group 0: 0.9 reaches 0.9, float32 as it is;  group 1: equal but good, the first;  group 2: 0.8 does not
    got = best_indicator_advantages(column(0.1, 0.9, 1, 1, 0.8, NAN), ONE, np.array([0, 0, 1, 1, 2, 2]), min_reward=0.9)
    np.testing.assert_array_equal(got, [0, 1, 1, 0, 0, NAN])


def test_penalty_makes_the_lowest_score_the_best():
    scores = column(0.2, 0.8)
    np.testing.assert_array_equal(preference_advantages(scores, -ONE, np.zeros(2, int)), [1, -1])
    np.testing.assert_array_equal(best_indicator_advantages(scores, -ONE, np.zeros(2, int)), [1, 0])


def test_least_reward_that_is_no_number_raises():
    with pytest.raises(ValueError, match="min_reward must be a number or None"):
        best_indicator_advantages(column(1), ONE, np.zeros(1, int), min_reward=NAN)
