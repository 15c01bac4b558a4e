"""Advantages against the whole batch."""

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.advantages import batch_advantages, reinforce_pp_advantages, rewards_with_kl

NAN = np.nan
ONE = np.ones(1, np.float32)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


# Rewards on a grid of 1/64, so that differences are either 0 or well above float32 noise.
grid = st.integers(-64, 64).map(lambda value: value / 64)
batches = st.lists(st.tuples(st.one_of(grid, st.just(NAN)), st.integers(0, 3)), min_size=1, max_size=24)


def arrays(batch: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
    return column(*(reward for reward, _ in batch)), np.array([group for _, group in batch])


def test_batch_advantages_match_hand_values_whatever_the_groups():
    # 1, 3, 5: mean 3, squared deviations 4 + 0 + 4 over 2: std 2; + eps 2 → -1/2, 0, 1/2
    for group in ([0, 0, 0, 0], [0, 1, 2, 3]):
        got = batch_advantages(column(1, NAN, 3, 5), ONE, np.array(group), eps=2.0)
        np.testing.assert_allclose(got, [-0.5, NAN, 0, 0.5], rtol=1e-6)


def test_unscaled_batch_advantages_are_deviations_from_the_mean():
    got = batch_advantages(column(1, NAN, 3, 5), ONE, np.zeros(4, int), scale="none")
    np.testing.assert_array_equal(got, [-2, NAN, 0, 2])
    assert np.isnan(batch_advantages(column(NAN), ONE, np.zeros(1, int), scale="none")).all()


def test_reinforce_pp_whitens_the_reward_less_its_kl():
    # rewards 1, 3, 5, KL 0, 10, 20 at 0.1 → 1, 2, 3: mean 2, std 1 → -1, 0, 1
    rewards = rewards_with_kl(column(1, 3, 5), ONE, np.array([0, 10, 20], np.float32), 0.1)
    got = reinforce_pp_advantages(rewards, ONE, np.arange(3), eps=0.0)
    np.testing.assert_allclose(got, [-1, 0, 1], atol=1e-6)


def test_reinforce_pp_with_baseline_matches_hand_values():
    # groups 1, 3 and 1, 7 less their means: -1, 1, -3, 3; squares 1 + 1 + 9 + 9 = 20 over 3 → divided by √(20/3)
    got = reinforce_pp_advantages(column(1, 3, 1, 7), ONE, np.array([0, 0, 1, 1]), baseline="group", eps=0.0)
    np.testing.assert_allclose(got, np.array([-1, 1, -3, 3]) / (20 / 3) ** 0.5, rtol=1e-6)


def test_group_of_one_has_no_advantage_over_its_own_mean():
    got = reinforce_pp_advantages(column(0.3, 1, 3), ONE, np.array([0, 1, 1]), baseline="group")
    assert got[0] == 0
    assert got[1] == -got[2] != 0


@settings(deadline=None)
@given(batches, st.sampled_from([0.0, 1e-4]))
def test_baseline_variant_is_group_mean_then_whitening(batch, eps):
    rewards, group = arrays(batch)
    got = reinforce_pp_advantages(rewards, ONE, group, baseline="group", eps=eps)
    centred = {}
    for row, (reward, own) in enumerate(batch):
        if not np.isnan(reward):
            centred[row] = reward - statistics.fmean(r for r, g in batch if g == own and not np.isnan(r))
    mean = statistics.fmean(centred.values()) if centred else 0.0
    std = statistics.stdev(centred.values()) if len(centred) > 1 else 0.0
    for row in range(len(batch)):
        expected = NAN if row not in centred else (centred[row] - mean) / (std + eps) if std > 1e-9 else 0.0
        np.testing.assert_allclose(got[row], expected, atol=1e-5)


@settings(deadline=None)
@given(batches, st.integers(-8, 8), st.sampled_from([0.25, 0.5, 2.0, 4.0]), st.sampled_from(["none", "group"]))
def test_whitened_advantages_have_mean_zero_and_deviation_one_whatever_shift_and_scale(batch, shift, factor, baseline):
    rewards, group = arrays(batch)
    got = reinforce_pp_advantages(rewards, ONE, group, baseline=baseline, eps=0.0)
    moved = rewards * np.float32(factor) + np.float32(shift)
    np.testing.assert_allclose(reinforce_pp_advantages(moved, ONE, group, baseline=baseline, eps=0.0), got, atol=1e-5)
    scored = got[~np.isnan(got)]
    if scored.any():
        assert abs(scored.mean()) < 1e-5
        assert scored.std(ddof=1) == pytest.approx(1.0, abs=1e-5)


def test_groups_of_other_spread_keep_their_share_of_the_gradient():
    # spreads 1 and 10: GRPO would give both ±1/√2; here they stay 1 to 10
    got = reinforce_pp_advantages(column(0, 1, 0, 10), ONE, np.array([0, 0, 1, 1]), baseline="group")
    np.testing.assert_allclose(got[2:] / got[:2], [10, 10], rtol=1e-5)


def test_unknown_knobs_raise():
    one = column(1), ONE, np.zeros(1, int)
    with pytest.raises(ValueError, match='scale must be "std" or "none", but is \'batch\''):
        batch_advantages(*one, scale="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='baseline must be "none" or "group"'):
        reinforce_pp_advantages(*one, baseline="mean")  # type: ignore[arg-type]
    for advantages in (batch_advantages, reinforce_pp_advantages):
        with pytest.raises(ValueError, match="eps must be 0 or more"):
            advantages(*one, eps=-1.0)
