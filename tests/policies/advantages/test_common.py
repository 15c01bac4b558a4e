"""Combined rewards, the KL taken from them, and the helpers that every advantage shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xomni_rl.policies.advantages import combine_rewards, rewards_with_kl
from xomni_rl.policies.advantages.common import (
    check_at_least,
    check_share,
    group_ranks,
    group_varies,
    scored_rewards,
    standardised,
)

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


# helpers


def test_scored_rewards_place_each_rollout_in_its_group():
    # ids 7, 2, 7 → ascending 2, 7 → positions 1, 0, 1
    reward, scored, index = scored_rewards(column(1, NAN, 3), ONE, np.array([7, 2, 7]))
    np.testing.assert_array_equal(reward, [1, NAN, 3])
    np.testing.assert_array_equal(scored, [True, False, True])
    np.testing.assert_array_equal(index, [1, 0, 1])


def test_group_whose_scored_values_differ_varies():
    # group 0: 1, 1;  group 1: 0, 2;  group 2: 5 and one not counted;  group 3: none counted
    values, index = np.array([1, 1, 0, 2, 5, NAN, NAN]), np.array([0, 0, 1, 1, 2, 2, 3])
    np.testing.assert_array_equal(group_varies(values, index, ~np.isnan(values)), [False, True, False, False])


def test_ranks_count_from_the_best_and_the_earlier_of_equals_is_better():
    # group 0 at positions 0, 2, 4, 5: 3, 5, 3, not counted → 5 first, then the 3 at 0, then the 3 at 4
    values, index = np.array([3, 9, 5, 1, 3, NAN]), np.array([0, 1, 0, 1, 0, 0])
    np.testing.assert_array_equal(group_ranks(values, index, ~np.isnan(values)), [1, 0, 0, 1, 2, -1])


@given(st.lists(st.tuples(st.one_of(st.integers(0, 3), st.just(NAN)), st.integers(0, 2)), max_size=12))
def test_ranks_are_positions_in_a_stable_sort(batch):
    values, index = np.array([value for value, _ in batch], float), np.array([group for _, group in batch], int)
    expected = np.full(len(batch), -1)
    for group in set(index.tolist()):
        rows = [row for row in range(len(batch)) if index[row] == group and not np.isnan(values[row])]
        for rank, row in enumerate(sorted(rows, key=lambda row: (-values[row], row))):
            expected[row] = rank
    np.testing.assert_array_equal(group_ranks(values, index, ~np.isnan(values)), expected)


def test_standardised_values_match_hand_values_and_leave_out_what_is_not_counted():
    # 1, 3, 5: mean 3, squared deviations 4 + 0 + 4 over 2 = 4, std 2; + eps 2 → -2/4, 0, 2/4
    got = standardised(np.array([1.0, NAN, 3.0, 5.0]), np.array([True, False, True, True]), 2.0)
    np.testing.assert_allclose(got, [-0.5, NAN, 0.0, 0.5])


@pytest.mark.parametrize("values", [[], [0.1], [0.1, 0.1, 0.1]])
def test_equal_values_standardise_to_zero_without_eps(values):
    np.testing.assert_array_equal(standardised(np.array(values), np.ones(len(values), bool), 0.0), np.zeros(len(values)))


@pytest.mark.parametrize("value", [-0.1, NAN, "1", None, True])
def test_what_is_no_number_or_too_small_is_refused(value):
    with pytest.raises(ValueError, match="eps must be 0 or more"):
        check_at_least("eps", value, 0.0)


@pytest.mark.parametrize("value", [0, 1.0, True])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match="k must be a whole number of 1 or more"):
        check_at_least("k", value, 1)


def test_share_above_one_is_refused():
    with pytest.raises(ValueError, match="lam must be at most 1, but"):
        check_share("lam", 1.5)
