"""Advantages against numbers worked out by hand, and the symmetries they must have."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.advantages import combine_rewards, group_advantages, rewards_with_kl

NAN = np.nan
ONE = np.ones(1, np.float32)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


# combine_rewards


def test_two_components_average_by_weight():
    # (3·0.5 + 1·0.1) / (3 + 1) = 1.6 / 4 = 0.4;  (3·1 + 1·0) / 4 = 0.75
    rewards = np.array([[0.5, 0.1], [1.0, 0.0]], np.float32)
    np.testing.assert_allclose(combine_rewards(rewards, np.array([3.0, 1.0])), [0.4, 0.75], rtol=1e-6)


def test_component_not_applicable_leaves_the_average_to_the_rest():
    # row 0: only component 1 applies → 0.1;  row 1: only component 0 → 0.5;  row 2: none → NaN
    rewards = np.array([[NAN, 0.1], [0.5, NAN], [NAN, NAN]], np.float32)
    np.testing.assert_allclose(combine_rewards(rewards, np.array([3.0, 1.0])), [0.1, 0.5, NAN], rtol=1e-6)


def test_component_of_weight_zero_is_ignored_even_if_nan_or_alone():
    rewards = np.array([[0.5, NAN], [0.5, 9.0], [NAN, 9.0]], np.float32)
    np.testing.assert_array_equal(combine_rewards(rewards, np.array([1.0, 0.0])), np.float32([0.5, 0.5, NAN]))


def test_negative_weight_alone_is_a_penalty():
    # -1·0.3 / |-1| = -0.3
    np.testing.assert_allclose(combine_rewards(column(0.3), np.array([-1.0])), [-0.3], rtol=1e-6)


def test_infinite_weight_raises():
    with pytest.raises(ValueError, match="weights must be finite"):
        combine_rewards(column(0.3), np.array([np.inf]))


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


@pytest.mark.parametrize("scale", ["std", "none"])
def test_groups_of_one_have_no_advantage(scale):
    np.testing.assert_array_equal(group_advantages(column(0.2, 5.0), ONE, np.array([0, 1]), scale=scale), [0, 0])


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_group_of_equal_rewards_has_no_advantage(eps):
    got = group_advantages(column(0.1, 0.1, 0.1), ONE, np.zeros(3, int), eps=eps)
    np.testing.assert_array_equal(got, [0, 0, 0])


@pytest.mark.parametrize("scale", ["std", "none"])
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
@given(batches, st.randoms(use_true_random=False), st.sampled_from(["std", "none"]))
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


# rewards_with_kl


def test_kl_lowers_the_combined_reward_by_coefficient_times_kl():
    # weights 3, -1, 0; rewards 0.5, 0.2, 9 → R = (1.5 - 0.2) / 4 = 0.325;  R - 0.1·2 = 0.125
    rewards, weights = np.array([[0.5, 0.2, 9.0]], np.float32), np.array([3.0, -1.0, 0.0])
    got = rewards_with_kl(rewards, weights, np.array([2.0], np.float32), 0.1)
    np.testing.assert_allclose(combine_rewards(got, weights), [0.125], rtol=1e-6)
    assert got[0, 2] == 9.0


def test_kl_with_inapplicable_components_still_lowers_the_combined_reward():
    # row 0: only component 1, 0.2 - 0.1·2 = 0;  row 1: nothing applies, NaN stays NaN
    rewards = np.array([[NAN, 0.2], [NAN, NAN]], np.float32)
    got = rewards_with_kl(rewards, np.ones(2), np.array([2.0, 3.0], np.float32), 0.1)
    np.testing.assert_allclose(combine_rewards(got, np.ones(2)), [0.0, NAN], atol=1e-7)


def test_kl_errors():
    with pytest.raises(ValueError, match=r"kl .*\(3,\).*rewards .*\(1, 1\)"):
        rewards_with_kl(column(1), ONE, np.zeros(3, np.float32), 0.1)
    with pytest.raises(ValueError, match="kl_coef must be 0 or more"):
        rewards_with_kl(column(1), ONE, np.zeros(1, np.float32), -0.1)
