"""Generalised advantage estimation against hand values and the definition as an average of n-step advantages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.advantages import gae_advantages, gae_returns

NAN = np.nan
ONE = np.ones(1, np.float32)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def float32(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_gae_matches_hand_values():
    # R = 2, V = 1, 0.5, γ = λ = 0.5:  A_1 = δ_1 = 2 - 0.5 = 1.5;  δ_0 = 0.5·0.5 - 1 = -0.75, A_0 = -0.75 + 0.25·1.5 = -0.375
    # returns: A + V = 0.625, 2
    arguments = column(2), ONE, np.zeros(1, int), float32([1, 0.5])
    got = gae_advantages(*arguments, gamma=0.5, lam=0.5, whiten=False)
    np.testing.assert_allclose(got, [[-0.375, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(gae_returns(*arguments, gamma=0.5, lam=0.5), [[0.625, 2.0]], rtol=1e-6)


def test_whitened_advantages_match_hand_values():
    # λ = 1, γ = 1: A = R - V = 1 - 0, 1 - 0, 3 - 0, 3 - 0: mean 2, squares 4·1 over 3 → ∓1/√(4/3) = ∓0.8660254
    got = gae_advantages(column(1, NAN, 3), ONE, np.zeros(3, int), np.zeros((3, 2), np.float32), lam=1.0)
    root = 0.75**0.5
    np.testing.assert_allclose(got, [[-root, -root], [NAN, NAN], [root, root]], rtol=1e-6)


def n_step(reward: float, values: list[float], t: int, n: int, gamma: float) -> float:
    """The n-step advantage: discounted rewards of n steps, then the critic, less the critic now."""
    last = len(values) - 1
    reached = min(t + n, last + 1)
    gain = gamma ** (last - t) * reward if reached == last + 1 else gamma**n * values[reached]
    return gain - values[t]


def averaged(reward: float, values: list[float], t: int, gamma: float, lam: float) -> float:
    """(1 - λ) Σ_n λ^(n-1) of n-step advantages; those beyond the end are all the same, so the last takes their weight."""
    left = len(values) - t
    terms = [(1 - lam) * lam ** (n - 1) * n_step(reward, values, t, n, gamma) for n in range(1, left)]
    return sum(terms) + lam ** (left - 1) * n_step(reward, values, t, left, gamma)


share = st.floats(0, 1).map(lambda value: round(value, 3))
rows = st.integers(1, 6).flatmap(
    lambda length: st.lists(
        st.tuples(st.floats(-2, 2, width=32), st.lists(st.floats(-2, 2, width=32), min_size=length, max_size=length)),
        min_size=1,
        max_size=4,
    )
)


def arrays(batch: list[tuple[float, list[float]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return column(*(row[0] for row in batch)), ONE, np.zeros(len(batch), int), float32(*(row[1] for row in batch))


@settings(deadline=None)
@given(rows, share, share)
def test_gae_is_the_average_of_all_n_step_advantages(batch, gamma, lam):
    got = gae_advantages(*arrays(batch), gamma=gamma, lam=lam, whiten=False)
    expected = [[averaged(r, values, t, gamma, lam) for t in range(len(values))] for r, values in batch]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@settings(deadline=None)
@given(rows)
def test_lambda_one_is_reward_less_value_and_returns_are_the_reward(batch):
    rewards, _, _, values = arrays(batch)
    got = gae_advantages(*arrays(batch), lam=1.0, whiten=False)
    np.testing.assert_allclose(got, rewards - values, atol=1e-5)
    np.testing.assert_allclose(gae_returns(*arrays(batch), lam=1.0), np.broadcast_to(rewards, values.shape), atol=1e-5)


@settings(deadline=None)
@given(rows, share)
def test_lambda_zero_is_the_temporal_difference(batch, gamma):
    rewards, _, _, values = arrays(batch)
    following = np.concatenate([gamma * values[:, 1:], rewards], axis=1)
    got = gae_advantages(*arrays(batch), gamma=gamma, lam=0.0, whiten=False)
    np.testing.assert_allclose(got, following - values, atol=1e-5)


@settings(deadline=None)
@given(rows, share)
def test_whitening_shifts_and_scales_the_whole_batch(batch, lam):
    got = gae_advantages(*arrays(batch), lam=lam).astype(np.float64)
    raw = gae_advantages(*arrays(batch), lam=lam, whiten=False).astype(np.float64)
    if raw.std() > 1e-2:
        assert abs(got.mean()) < 1e-4
        assert got.std(ddof=1) == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose(got, (raw - raw.mean()) / raw.std(ddof=1), atol=1e-4)


def test_critic_that_knows_the_reward_leaves_no_advantage():
    # V = R at every token: every δ is 0
    rewards, values = column(0.1, 0.7), np.repeat(column(0.1, 0.7), 5, axis=1)
    for whiten in (True, False):
        got = gae_advantages(rewards, ONE, np.zeros(2, int), values, whiten=whiten)
        np.testing.assert_array_equal(got, np.zeros((2, 5)))


def test_rollout_without_reward_has_neither_advantage_nor_return():
    arguments = column(1, NAN), ONE, np.zeros(2, int), np.zeros((2, 3), np.float32)
    for got in (gae_advantages(*arguments), gae_returns(*arguments)):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(np.isnan(got), [[False] * 3, [True] * 3])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"gamma": 1.1}, "gamma must be at most 1"),
        ({"gamma": -0.1}, "gamma must be 0 or more"),
        ({"lam": 2.0}, "lam must be at most 1"),
        ({"whiten": "no"}, "whiten must be True or False"),
        ({"eps": -1.0}, "eps must be 0 or more"),
    ],
)
def test_bad_knobs_raise(knobs, message):
    with pytest.raises(ValueError, match=message):
        gae_advantages(column(1), ONE, np.zeros(1, int), np.zeros((1, 2), np.float32), **knobs)


@pytest.mark.parametrize("estimate", [gae_advantages, gae_returns])
def test_bad_values_raise(estimate):
    with pytest.raises(ValueError, match=r"values .*\(3, 2\).*reward has shape \(1,\)"):
        estimate(column(1), ONE, np.zeros(1, int), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="values must have a token at least"):
        estimate(column(1), ONE, np.zeros(1, int), np.zeros((1, 0), np.float32))
    with pytest.raises(ValueError, match="values must be finite, but row 1 is not"):
        estimate(column(1, 2), ONE, np.zeros(2, int), float32([0, 0], [0, NAN]))
