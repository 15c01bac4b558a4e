"""Advantages within a group against numbers worked out by hand, and the symmetries they must have."""

import itertools
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.advantages import (
    group_advantages,
    opo_advantages,
    pass_at_k_advantages,
    rloo_advantages,
)

NAN = np.nan
ONE = np.ones(1, np.float32)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


# group_advantages


def test_scaled_advantages_match_hand_values():
    # group 7: rewards 1, 3 → mean 2, squared deviations 1 + 1, over n - 1 = 1: std √2 → ±1/√2 = ±0.70710678
    # group 2: rewards 0, 0, 3 → mean 1, squared deviations 1 + 1 + 4 = 6, over 2: std √3 → -1/√3, -1/√3, 2/√3
    rewards, group = column(1, 0, 3, 0, 3), np.array([7, 2, 7, 2, 2])
    third = 3**-0.5
    expected = [-(2**-0.5), -third, 2**-0.5, -third, 2 * third]
    np.testing.assert_allclose(group_advantages(rewards, ONE, group, eps=0.0), expected, rtol=1e-6)


def test_default_eps_is_added_to_the_deviation():
    # rewards 1, 3: ±1 / (√2 + 1e-4) = ±0.707056785
    np.testing.assert_allclose(group_advantages(column(1, 3), ONE, np.zeros(2, int)), [-0.707056785, 0.707056785], rtol=1e-6)


def test_unscaled_advantages_are_deviations_from_the_group_mean():
    rewards, group = column(1, 0, 3, 0, 3), np.array([7, 2, 7, 2, 2])
    np.testing.assert_allclose(group_advantages(rewards, ONE, group, scale="none"), [-1, -1, 1, -1, 2], atol=1e-6)


def test_rollout_without_reward_gets_nan_and_leaves_its_group_alone():
    # the group is then 1, 3 as above
    got = group_advantages(column(1, NAN, 3), ONE, np.zeros(3, int), eps=0.0)
    np.testing.assert_allclose(got, [-(2**-0.5), NAN, 2**-0.5], rtol=1e-6)


@pytest.mark.parametrize("scale", ["std", "batch", "none"])
def test_groups_of_one_have_no_advantage(scale):
    np.testing.assert_array_equal(group_advantages(column(0.2, 5.0), ONE, np.array([0, 1]), scale=scale), [0, 0])


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_group_of_equal_rewards_has_no_advantage(eps):
    got = group_advantages(column(0.1, 0.1, 0.1), ONE, np.zeros(3, int), eps=eps)
    np.testing.assert_array_equal(got, [0, 0, 0])


@pytest.mark.parametrize("scale", ["std", "batch", "none"])
def test_all_nan_rewards_give_all_nan_advantages(scale):
    got = group_advantages(column(NAN, NAN), ONE, np.zeros(2, int), scale=scale)
    assert got.dtype == np.float32
    assert np.isnan(got).all()


def test_no_rollouts_give_no_advantages():
    assert group_advantages(np.zeros((0, 1), np.float32), ONE, np.zeros(0, int)).shape == (0,)


def test_inputs_are_not_changed():
    rewards, group = column(1, NAN, 3), np.zeros(3, int)
    before = rewards.copy()
    group_advantages(rewards, ONE, group)
    np.testing.assert_array_equal(rewards, before)


def test_wrong_shapes_raise_with_both_shapes():
    with pytest.raises(ValueError, match=r"group .*\(3,\).*rewards .*\(2, 1\)"):
        group_advantages(column(1, 3), ONE, np.zeros(3, int))
    with pytest.raises(ValueError, match=r"weights .*\(2,\).*rewards .*\(2, 1\)"):
        group_advantages(column(1, 3), np.ones(2), np.zeros(2, int))


def test_bad_knobs_raise():
    with pytest.raises(ValueError, match="scale must be"):
        group_advantages(column(1, 3), ONE, np.zeros(2, int), scale="var")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps must be 0 or more"):
        group_advantages(column(1, 3), ONE, np.zeros(2, int), eps=-1.0)


# Rewards on a grid of 1/64, so that differences within a group are either 0 or well above float32 noise.
grid = st.integers(-64, 64).map(lambda value: value / 64)
batches = st.lists(st.tuples(st.one_of(grid, st.just(NAN)), st.integers(0, 3)), min_size=1, max_size=24)


def arrays(batch: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return column(*(reward for reward, _ in batch)), np.array([group for _, group in batch])


@settings(deadline=None)
@given(batches, st.integers(-8, 8), st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_shift_and_scale_of_rewards_change_nothing(batch, shift, factor):
    rewards, group = arrays(batch)
    np.testing.assert_allclose(
        group_advantages(rewards * np.float32(factor) + np.float32(shift), ONE, group, eps=0.0),
        group_advantages(rewards, ONE, group, eps=0.0),
        atol=1e-5,
    )


@settings(deadline=None)
@given(batches, st.randoms(use_true_random=False), st.sampled_from(["std", "batch", "none"]))
def test_permutation_moves_advantages_along(batch, random, scale):
    rewards, group = arrays(batch)
    order = list(range(len(batch)))
    random.shuffle(order)
    np.testing.assert_allclose(
        group_advantages(rewards[order], ONE, group[order], scale=scale),
        group_advantages(rewards, ONE, group, scale=scale)[order],
        atol=1e-5,
    )


@settings(deadline=None)
@given(batches)
def test_advantages_of_every_group_sum_to_zero(batch):
    rewards, group = arrays(batch)
    got = group_advantages(rewards, ONE, group)
    for each in np.unique(group):
        assert abs(np.nansum(got[group == each])) < 1e-4


@settings(deadline=None)
@given(batches)
def test_group_ids_are_only_labels(batch):
    rewards, group = arrays(batch)
    np.testing.assert_array_equal(group_advantages(rewards, ONE, 1000 - 7 * group), group_advantages(rewards, ONE, group))


def test_batch_scale_divides_by_the_deviation_of_all_rewards():
    # groups 1, 3 and 1, 7: means 2 and 4; all four: mean 3, squared deviations 4 + 0 + 4 + 16 = 24, over 3: std √8
    got = group_advantages(column(1, 3, 1, 7), ONE, np.array([0, 0, 1, 1]), scale="batch", eps=0.0)
    np.testing.assert_allclose(got, np.array([-1, 1, -3, 3]) / 8**0.5, rtol=1e-6)


def test_batch_scale_leaves_out_rollouts_without_reward_and_has_none_for_one_reward():
    # as above
    got = group_advantages(column(1, 3, NAN, 1, 7), ONE, np.array([0, 0, 0, 1, 1]), scale="batch", eps=0.0)
    np.testing.assert_allclose(got, np.array([-1, 1, NAN, -3, 3]) / 8**0.5, rtol=1e-6)
    np.testing.assert_array_equal(group_advantages(column(5, NAN), ONE, np.array([0, 0]), scale="batch"), [0, NAN])


# rloo_advantages


def test_leave_one_out_matches_hand_values():
    # group 7: 1, 3 → 1 - 3, 3 - 1;  group 2: 0, 0, 3 → 0 - 3/2, 0 - 3/2, 3 - 0
    got = rloo_advantages(column(1, 0, 3, 0, 3), ONE, np.array([7, 2, 7, 2, 2]))
    np.testing.assert_allclose(got, [-2, -1.5, 2, -1.5, 3], rtol=1e-6)


def test_rollout_alone_has_no_leave_one_out_advantage():
    # a group of one; a group with one reward; beside them 1, 3
    got = rloo_advantages(column(0.7, 0.2, NAN, 1, 3), ONE, np.array([0, 1, 1, 2, 2]))
    np.testing.assert_array_equal(got, [0, 0, NAN, -2, 2])


@settings(deadline=None)
@given(batches)
def test_leave_one_out_is_reward_less_mean_of_the_others(batch):
    rewards, group = arrays(batch)
    got = rloo_advantages(rewards, ONE, group)
    for row, (reward, own) in enumerate(batch):
        others = [r for other, (r, g) in enumerate(batch) if g == own and other != row and not np.isnan(r)]
        expected = reward - statistics.mean(others) if others else 0.0 * reward
        np.testing.assert_allclose(got[row], expected, atol=1e-6)


# opo_advantages


def test_optimal_baseline_weighs_rewards_by_length():
    # rewards 0, 1 of lengths 1, 3: baseline 3/4 → -3/4, 1/4
    got = opo_advantages(column(0, 1), ONE, np.zeros(2, int), lengths=np.array([1, 3]))
    np.testing.assert_allclose(got, [-0.75, 0.25], rtol=1e-6)


def test_rollout_without_reward_has_no_part_in_the_optimal_baseline():
    got = opo_advantages(column(0, NAN, 1), ONE, np.zeros(3, int), lengths=np.array([1, 50, 3]))
    np.testing.assert_allclose(got, [-0.75, NAN, 0.25], rtol=1e-6)


@settings(deadline=None)
@given(batches, st.integers(1, 500))
def test_equal_lengths_make_the_optimal_baseline_the_group_mean(batch, length):
    rewards, group = arrays(batch)
    expected = group_advantages(rewards, ONE, group, scale="none")
    np.testing.assert_array_equal(opo_advantages(rewards, ONE, group), expected)
    got = opo_advantages(rewards, ONE, group, lengths=np.full(len(group), length))
    np.testing.assert_allclose(got, expected, atol=1e-6)


@settings(deadline=None)
@given(batches, st.lists(st.integers(1, 2000), min_size=24, max_size=24))
def test_optimal_baseline_is_the_length_weighted_mean(batch, lengths):
    rewards, group = arrays(batch)
    got = opo_advantages(rewards, ONE, group, lengths=np.array(lengths[: len(batch)]))
    for row, (reward, own) in enumerate(batch):
        mates = [(r, lengths[i]) for i, (r, g) in enumerate(batch) if g == own and not np.isnan(r)]
        if not np.isnan(reward):
            baseline = sum(r * tokens for r, tokens in mates) / sum(tokens for _, tokens in mates)
            assert got[row] == pytest.approx(reward - baseline, abs=1e-6)


def test_equal_rewards_of_any_length_have_no_advantage():
    got = opo_advantages(column(0.1, 0.1, 0.1), ONE, np.zeros(3, int), lengths=np.array([7, 48, 1001]))
    np.testing.assert_array_equal(got, [0, 0, 0])


def test_bad_lengths_raise():
    with pytest.raises(ValueError, match="lengths must be 1 or more, but the smallest is 0"):
        opo_advantages(column(0, 1), ONE, np.zeros(2, int), lengths=np.array([0, 3]))
    with pytest.raises(ValueError, match=r"lengths .*\(3,\).*group .*\(2,\)"):
        opo_advantages(column(0, 1), ONE, np.zeros(2, int), lengths=np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="lengths must hold int values"):
        opo_advantages(column(0, 1), ONE, np.zeros(2, int), lengths=np.array([1.0, 2.0]))


# pass_at_k_advantages


def test_pass_at_two_of_four_matches_hand_values():
    # one right, three wrong, k = 2: ρ = 1 - C(3,2)/C(4,2) = 1 - 3/6 = 1/2, σ = 1/2
    # right: (1 - 1/2) / (1/2) = 1;  wrong: (1/2 - C(2,1)/C(3,1)) / (1/2) = (1/2 - 2/3)·2 = -1/3
    got = pass_at_k_advantages(column(0.2, 1.0, 0.4, 0.0), ONE, np.zeros(4, int), k=2)
    np.testing.assert_allclose(got, [-1 / 3, 1, -1 / 3, -1 / 3], rtol=1e-6)


def test_pass_at_one_is_grpo_on_right_and_wrong():
    # 1 right of 4: mean 1/4, deviation (over n) √(1/4·3/4) = √3/4 → right 3/4 / (√3/4) = √3, wrong -1/√3
    got = pass_at_k_advantages(column(0, 1, 0, 0), ONE, np.zeros(4, int), k=1)
    np.testing.assert_allclose(got, [-(3**-0.5), 3**0.5, -(3**-0.5), -(3**-0.5)], rtol=1e-6)


def test_groups_that_pass_at_k_can_teach_nothing_have_no_advantage():
    # k = 2: group 0 all wrong; group 1 all right; group 2 one wrong, so that any two hold a right one; group 3 of two alone
    rewards = column(0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 0)
    got = pass_at_k_advantages(rewards, ONE, np.repeat([0, 1, 2, 3], [3, 3, 3, 2]), k=2)
    np.testing.assert_array_equal(got, np.zeros(11))


def test_rollout_without_reward_is_not_one_of_the_k():
    # the other four as above
    got = pass_at_k_advantages(column(0.2, 1.0, NAN, 0.4, 0.0), ONE, np.zeros(5, int), k=2)
    np.testing.assert_allclose(got, [-1 / 3, 1, NAN, -1 / 3, -1 / 3], rtol=1e-6)


def test_reward_at_the_threshold_is_right_though_it_is_float32():
    # float32 0.9 is 0.89999998
    got = pass_at_k_advantages(column(0.9, 0.8, 0.8), ONE, np.zeros(3, int), k=1, threshold=0.9)
    assert got[0] > 0 > got[1]


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_average_over_all_subsets(right, data):
    n = len(right)
    k = data.draw(st.integers(1, n))
    got = pass_at_k_advantages(column(*right), ONE, np.zeros(n, int), k=k)
    subsets = list(itertools.combinations(range(n), k))
    best = [float(any(right[i] for i in subset)) for subset in subsets]
    mean, deviation = statistics.fmean(best), statistics.pstdev(best)
    for row in range(n):
        own = [(value - mean) / deviation if deviation else 0.0 for value, s in zip(best, subsets, strict=True) if row in s]
        assert got[row] == pytest.approx(statistics.fmean(own), abs=1e-5)
    assert abs(got.sum()) < 1e-4


def test_bad_pass_at_k_knobs_raise():
    three = column(0, 1, 1), ONE, np.array([0, 1, 1])
    with pytest.raises(ValueError, match="k must be at most the group size, but is 3 where the largest group has 2 rollouts"):
        pass_at_k_advantages(*three, k=3)
    with pytest.raises(ValueError, match="k must be a whole number of 1 or more"):
        pass_at_k_advantages(*three, k=0)
    with pytest.raises(ValueError, match="threshold must be finite"):
        pass_at_k_advantages(*three, k=1, threshold=NAN)
