"""ReMax: the greedy image of the prompt as baseline."""

import numpy as np
import pytest

from xomni_rl.policies.advantages import remax_advantages

NAN = np.nan
ONE = np.ones(1, np.float32)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_advantage_is_reward_less_that_of_the_greedy_image():
    # prompt 0: 0.5 - 0.25, 0.25 - 0.25; prompt 1: 0.5 - 1
    got = remax_advantages(column(0.5, 0.25, 0.5), ONE, np.array([0, 0, 1]), greedy=column(0.25, 0.25, 1.0))
    np.testing.assert_array_equal(got, [0.25, 0.0, -0.5])
    assert got.dtype == np.float32


def test_components_are_weighted_alike_on_both_sides():
    # weights 3, -1, 0: (3·0.5 - 0.2)/4 = 0.325;  greedy (3·0.1 - 0.6)/4 = -0.075 → 0.4
    rewards, greedy = np.array([[0.5, 0.2, 9.0]], np.float32), np.array([[0.1, 0.6, NAN]], np.float32)
    got = remax_advantages(rewards, np.array([3.0, -1.0, 0.0]), np.zeros(1, int), greedy=greedy)
    np.testing.assert_allclose(got, [0.4], rtol=1e-6)


def test_only_components_that_apply_to_both_are_compared():
    # row 0: component 0 alone, 0.5 - 0.1;  row 1: component 1 alone, 0.2 - 0.6;  row 2: none in common
    rewards = np.array([[0.5, 0.2], [NAN, 0.2], [0.5, NAN]], np.float32)
    greedy = np.array([[0.1, NAN], [0.1, 0.6], [NAN, 0.6]], np.float32)
    got = remax_advantages(rewards, np.ones(2), np.zeros(3, int), greedy=greedy)
    np.testing.assert_allclose(got, [0.4, -0.4, NAN], rtol=1e-6)


def test_rollout_like_the_greedy_image_has_exactly_no_advantage():
    rewards = np.array([[0.1, 0.7, 0.3]], np.float32)
    assert remax_advantages(rewards, np.array([0.3, 0.1, 2.0]), np.zeros(1, int), greedy=rewards)[0] == 0


def test_shift_of_both_changes_nothing_and_scale_scales():
    draw = np.random.default_rng(0)
    rewards, greedy = draw.random((6, 2), np.float32), draw.random((6, 2), np.float32)
    rest = np.array([1.0, 2.0]), np.zeros(6, int)
    got = remax_advantages(rewards, *rest, greedy=greedy)
    np.testing.assert_allclose(remax_advantages(rewards + 3, *rest, greedy=greedy + 3), got, atol=1e-6)
    np.testing.assert_allclose(remax_advantages(rewards * 4, *rest, greedy=greedy * 4), got * 4, rtol=1e-6)


def test_wrong_shapes_raise_with_both_shapes():
    with pytest.raises(ValueError, match=r"greedy .*\(1, 1\).*rewards .*\(2, 1\)"):
        remax_advantages(column(1, 2), ONE, np.zeros(2, int), greedy=column(1))
    with pytest.raises(ValueError, match=r"group .*\(3,\).*rewards .*\(2, 1\)"):
        remax_advantages(column(1, 2), ONE, np.zeros(3, int), greedy=column(1, 2))
