"""Which rollouts take part in an update."""

import itertools
import statistics
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.advantages import group_advantages
from xomni_rl.policies.filters import (
    FILTERS,
    advantages_over_kept,
    best_and_worst,
    best_of_group,
    best_worst,
    drop_zero_variance,
    keep_all,
    max_variance,
    needs_resampling,
    zero_variance_share,
)

NAN = np.nan
ONE = np.ones(1, np.float32)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_keep_all_leaves_out_only_rollouts_without_reward():
    got = keep_all(column(0.1, NAN, 0.1), ONE, np.zeros(3, int))
    np.testing.assert_array_equal(got, [True, False, True])


def test_group_of_equal_rewards_is_dropped_and_ids_need_not_be_neighbours():
    # group 5: 0.3, 0.3 → dropped;  group 1: 0.3, 0.4 → kept
    got = drop_zero_variance(column(0.3, 0.3, 0.3, 0.4), ONE, np.array([5, 1, 5, 1]))
    np.testing.assert_array_equal(got, [False, True, False, True])


def test_failed_rollout_neither_counts_as_variance_nor_takes_part():
    # group 0: 0.3, NaN → one reward, nothing to compare it with;  group 1: 0, 1, NaN → kept but for the NaN
    got = drop_zero_variance(column(0.3, NAN, 0.0, 1.0, NAN), ONE, np.array([0, 0, 1, 1, 1]))
    np.testing.assert_array_equal(got, [False, False, True, True, False])


def test_components_that_cancel_have_no_variance():
    # weights 1, 1: 0 + 1 and 1 + 0 both average 0.5, so the advantages are 0 whatever the components say
    rewards = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    np.testing.assert_array_equal(drop_zero_variance(rewards, np.ones(2), np.zeros(2, int)), [False, False])


def test_variance_of_a_logged_only_component_does_not_count():
    rewards = np.array([[0.5, 1.0], [0.5, 0.0]], np.float32)
    np.testing.assert_array_equal(drop_zero_variance(rewards, np.array([1, 0]), np.zeros(2, int)), [False, False])


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_all_nan_batch_keeps_nothing(name):
    assert not FILTERS[name](column(NAN, NAN), ONE, np.zeros(2, int)).any()


def test_share_counts_groups_with_a_reward():
    # group 0 equal, group 1 differs, group 2 has a single reward (nothing to learn), group 3 none: 2 of 3
    rewards, group = column(1, 1, 0, 1, 5, NAN, NAN), np.array([0, 0, 1, 1, 2, 2, 3])
    assert zero_variance_share(rewards, ONE, group) == pytest.approx(2 / 3)


def test_share_is_absent_when_nothing_was_scored():
    assert zero_variance_share(column(NAN), ONE, np.zeros(1, int)) is None


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_wrong_shapes_raise_with_both_shapes(name):
    with pytest.raises(ValueError, match=r"group .*\(3,\).*rewards .*\(2, 1\)"):
        FILTERS[name](column(1, 3), ONE, np.zeros(3, int))


# best_worst


def test_best_and_worst_of_each_group_are_kept_and_the_middle_is_not():
    # group 0: 1, 5, 2, 4, 3 → 5 and 1;  group 1: 7, 9 → both
    rewards, group = column(1, 5, 7, 2, 4, 3, 9), np.array([0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_array_equal(best_worst(rewards, ONE, group, keep=1), [1, 1, 1, 0, 0, 0, 1])


def test_of_equal_rewards_the_earlier_counts_as_better():
    # best first: 3 (first), 3 (second), 1, 1, 1 in their order → the first 3 and the last 1
    got = best_worst(column(1, 3, 1, 3, 1), ONE, np.zeros(5, int), keep=1)
    np.testing.assert_array_equal(got, [0, 1, 0, 0, 1])


def test_group_with_too_few_is_kept_whole_but_for_rollouts_without_reward():
    # three scored rollouts, two from either end
    got = best_worst(column(1, NAN, 2, 3), ONE, np.zeros(4, int), keep=2)
    np.testing.assert_array_equal(got, [1, 0, 1, 1])


# max_variance


def test_most_spread_rollouts_need_not_be_half_and_half():
    # 10, 0, 1, 9, 0.5, three of them: {10, 9, 0} has mean 19/3, variance (181 - 361/3)/3 = 20.2;
    # {10, 0, 0.5}: mean 3.5, variance (100.25 - 36.75)/3 = 21.2, the largest
    got = max_variance(column(10, 0, 1, 9, 0.5), ONE, np.zeros(5, int), keep=3)
    np.testing.assert_array_equal(got, [1, 1, 0, 0, 1])


def test_right_and_wrong_are_kept_half_and_half():
    # two of four right in eight: variance p(1-p) is largest at 2 and 2; of equals the earliest right and the last wrong
    got = max_variance(column(0, 1, 0, 1, 0, 1, 0, 0), ONE, np.zeros(8, int), keep=4)
    np.testing.assert_array_equal(got, [0, 1, 0, 1, 0, 0, 1, 1])


def test_of_subsets_equally_spread_the_one_with_more_of_the_best_is_kept():
    # 0, 1, 2 and 3, three of them: {3, 2, 0} and {3, 1, 0} have variance 14/9 both
    got = max_variance(column(0, 1, 2, 3), ONE, np.zeros(4, int), keep=3)
    np.testing.assert_array_equal(got, [1, 0, 1, 1])


def test_group_of_equal_rewards_keeps_as_many_and_smaller_groups_all():
    # group 0: four equal, two kept;  group 1: two, one of them without a reward
    got = max_variance(column(1, 1, 1, 1, 5, NAN), ONE, np.array([0, 0, 0, 0, 1, 1]), keep=2)
    np.testing.assert_array_equal(got, [1, 1, 0, 0, 1, 0])


grid = st.integers(-16, 16).map(lambda value: value / 16)


@settings(deadline=None)
@given(st.lists(grid, min_size=2, max_size=9), st.data())
def test_no_subset_of_that_size_is_more_spread(rewards, data):
    keep = data.draw(st.integers(2, len(rewards)))
    got = max_variance(column(*rewards), ONE, np.zeros(len(rewards), int), keep=keep)
    assert got.sum() == keep
    largest = max(statistics.pvariance(subset) for subset in itertools.combinations(rewards, keep))
    assert statistics.pvariance(np.array(rewards)[got].tolist()) == pytest.approx(largest, abs=1e-9)


# best_of_group, best_and_worst


def test_best_of_each_group_is_kept_if_better_than_the_worst():
    # group 0: 1, 5, 5 → the first 5;  group 1: 2, 2 → none;  group 2: NaN, 3 → none
    got = best_of_group(column(1, 5, 5, 2, 2, NAN, 3), ONE, np.array([0, 0, 0, 1, 1, 2, 2]))
    np.testing.assert_array_equal(got, [0, 1, 0, 0, 0, 0, 0])


def test_best_of_each_group_is_kept_if_it_reaches_the_least_reward():
    # group 0: 5 ≥ 2.5;  group 1: 2 does not reach it;  group 2: 3 does, alone as it is
    got = best_of_group(column(1, 5, 5, 2, 2, NAN, 3), ONE, np.array([0, 0, 0, 1, 1, 2, 2]), min_reward=2.5)
    np.testing.assert_array_equal(got, [0, 1, 0, 0, 0, 0, 1])


def test_one_pair_is_kept_of_each_group_whose_rewards_differ():
    # group 0: 1, 5, 5, 1 → first 5, last 1;  group 1: equal;  group 2: one reward
    got = best_and_worst(column(1, 5, 5, 1, 2, 2, NAN, 3), ONE, np.array([0, 0, 0, 0, 1, 1, 2, 2]))
    np.testing.assert_array_equal(got, [0, 1, 0, 1, 0, 0, 0, 0])


# needs_resampling


def test_groups_that_teach_nothing_need_other_prompts():
    # ids 3: equal;  5: differ;  8: one reward;  9: none;  12: one rollout
    rewards, group = column(1, 5, 1, 6, 2, NAN, NAN, NAN, 4), np.array([3, 5, 3, 5, 8, 8, 9, 9, 12])
    np.testing.assert_array_equal(needs_resampling(rewards, ONE, group), [True, False, True, True, True])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.just(NAN)), st.integers(0, 3)), min_size=1, max_size=12)
)
def test_groups_to_be_replaced_are_those_without_any_advantage(batch):
    rewards, group = column(*(reward for reward, _ in batch)), np.array([label for _, label in batch])
    advantages = np.nan_to_num(group_advantages(rewards, ONE, group))
    expected = [not advantages[group == label].any() for label in np.unique(group)]
    np.testing.assert_array_equal(needs_resampling(rewards, ONE, group), expected)


# advantages_over_kept


def test_advantages_over_kept_compare_the_kept_alone():
    # best and worst of 1, 2, 3, 9: 9 and 1 → mean 5, ±4, where all four have mean 3.75
    rewards, group = column(1, 2, 3, 9), np.zeros(4, int)
    advantage = advantages_over_kept(partial(group_advantages, scale="none"), partial(best_worst, keep=1))
    np.testing.assert_array_equal(advantage(rewards, ONE, group), [-4, NAN, NAN, 4])
    np.testing.assert_array_equal(group_advantages(rewards, ONE, group, scale="none"), [-2.75, -1.75, -0.75, 5.25])


def test_advantages_over_kept_hand_on_what_else_the_advantage_needs():
    def advantage(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, greedy: np.ndarray) -> np.ndarray:
        return (rewards - greedy)[:, 0]

    got = advantages_over_kept(advantage, keep_all)(column(1, NAN), ONE, np.zeros(2, int), greedy=column(0.5, 0.5))
    np.testing.assert_array_equal(got, [0.5, NAN])


# all filters

batches = st.lists(st.tuples(st.one_of(grid, st.just(NAN)), st.integers(0, 3)), min_size=1, max_size=16)


@settings(deadline=None, max_examples=40)
@given(batches)
@pytest.mark.parametrize("name", sorted(FILTERS))
def test_filters_keep_scored_rollouts_only_and_group_ids_are_labels(name, batch):
    rewards, group = column(*(reward for reward, _ in batch)), np.array([label for _, label in batch])
    got = FILTERS[name](rewards, ONE, group)
    assert got.dtype == np.bool_
    assert not got[np.isnan(rewards[:, 0])].any()
    np.testing.assert_array_equal(FILTERS[name](rewards, ONE, 100 - 7 * group), got)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(10)))
@pytest.mark.parametrize("name", sorted(FILTERS))
def test_permutation_moves_the_choice_along_where_no_rewards_are_equal(name, order):
    rewards, group = (np.linspace(0, 1, 10, dtype=np.float32) ** 2)[:, None], np.arange(10) % 2
    np.testing.assert_array_equal(FILTERS[name](rewards[order], ONE, group[order]), FILTERS[name](rewards, ONE, group)[order])


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_no_rollouts_give_an_empty_choice(name):
    assert FILTERS[name](np.zeros((0, 1), np.float32), ONE, np.zeros(0, int)).shape == (0,)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("best_worst", {"keep": 0}, "keep must be a whole number of 1 or more"),
        ("best_worst", {"keep": 1.5}, "keep must be a whole number of 1 or more"),
        ("max_variance", {"keep": 1}, "keep must be a whole number of 2 or more"),
        ("best_of_group", {"min_reward": NAN}, "min_reward must be a number or None"),
    ],
)
def test_bad_knobs_raise_even_for_no_rollouts(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        FILTERS[name](np.zeros((0, 1), np.float32), ONE, np.zeros(0, int), **knobs)
