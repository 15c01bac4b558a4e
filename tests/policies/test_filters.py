"""Which rollouts take part in an update."""

import numpy as np
import pytest

from xomni_rl.policies.filters import FILTERS, drop_zero_variance, keep_all, zero_variance_share

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
