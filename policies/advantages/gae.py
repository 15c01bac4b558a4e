"""Advantages per token from a critic: generalised advantage estimation, for PPO."""

from __future__ import annotations

import numpy as np

from xomni_rl.policies.advantages.common import check_at_least, check_share, scored_rewards, standardised
from xomni_rl.policies.shapes import check_shapes


def gae_advantages(
    rewards: np.ndarray,
    weights: np.ndarray,
    group: np.ndarray,
    values: np.ndarray,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten: bool = True,
    eps: float = 1e-8,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Generalised advantage estimation: an exponential average of all n-step advantages.

    δ_t = r_t + γ V_{t+1} - V_t,   V_T = 0,   r_t = R at the last token and 0 before it
    A_t = Σ_{l≥0} (γλ)^l δ_{t+l}
    whiten: A ← (A - mean A) / (std A + eps), mean and std (n - 1) over all tokens of all rollouts that have a reward
    with R from `combine_rewards` and tokens t = 0 … T-1. λ = 1 is reward less value (no bias but noise), λ = 0 the
    one-step temporal difference (no noise but the critic's bias).

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float.
        group: [N] int; not used, but checked.
        values: [N, T] float, T ≥ 1; the critic's prediction, before token t is drawn, of the reward to come; finite.
        gamma: discount γ per token, in [0, 1].
        lam: λ, in [0, 1].
        whiten: whether advantages are standardised over the batch.
        eps: added to the standard deviation, ≥ 0.
        mask: [N, T] bool, True = a token, where rollouts have different lengths: each row's tokens come first, one at least.
            None = all are tokens.
    Returns: [N, T] float32; NaN along a rollout without a reward; 0 where there is no token.
    Raises: ValueError if shapes or dtypes differ, a value is not finite, or a knob is out of range.
    Source: arXiv:1506.02438, equation 16; arXiv:1707.06347, equations 11 and 12, whose λ = 0.95 is the default. Departs from
        them: γ is 1, as every rollout ends after T tokens with its one reward; whitening, usual in implementations of PPO, is
        in neither.
    """
    if not isinstance(whiten, bool):
        raise ValueError(f"whiten must be True or False, but is {whiten!r}")
    check_at_least("eps", eps, 0.0)
    reward, scored, _ = scored_rewards(rewards, weights, group)
    mask = np.ones_like(values, dtype=bool) if mask is None else mask
    advantages = _estimate(reward, values, gamma, lam, mask)
    if whiten:
        advantages = standardised(advantages, scored[:, None] & mask, eps)
    return np.where(mask, advantages, 0.0).astype(np.float32)


def gae_returns(
    rewards: np.ndarray,
    weights: np.ndarray,
    group: np.ndarray,
    values: np.ndarray,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """What the critic is to predict: TD(λ) returns.

    G_t = A_t + V_t, with A from `gae_advantages`, not whitened. λ = 1, γ = 1: the reward itself, at every token.

    Args: as in `gae_advantages`; use the same gamma and lam.
    Returns: [N, T] float32, in units of the reward; NaN along a rollout without a reward; 0 where there is no token.
    Raises: ValueError as there.
    Source: arXiv:1506.02438, section 5, fits the critic to the discounted sum of rewards, which is λ = 1 here; implementations
        of PPO fit it to these.
    """
    reward, _, _ = scored_rewards(rewards, weights, group)
    mask = np.ones_like(values, dtype=bool) if mask is None else mask
    return np.where(mask, _estimate(reward, values, gamma, lam, mask) + values, 0.0).astype(np.float32)


def _estimate(reward: np.ndarray, values: np.ndarray, gamma: float, lam: float, mask: np.ndarray) -> np.ndarray:
    """A of each token, [N, T] float64, from rewards [N] and values [N, T]; by A_t = δ_t + γλ A_{t+1}, from the end."""
    sizes = check_shapes(reward=(reward, "N", "float"), values=(values, "N T", "float"), mask=(mask, "N T", "bool"))
    check_share("gamma", gamma)
    check_share("lam", lam)
    if sizes["T"] < 1:
        raise ValueError(f"values must have a token at least, but has shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"values must be finite, but row {int(np.argwhere(~np.isfinite(values))[0][0])} is not")
    values = values.astype(np.float64)
    advantages = np.empty_like(values)
    advantages[:, -1] = reward - values[:, -1]
    for t in range(sizes["T"] - 2, -1, -1):
        delta = gamma * values[:, t + 1] - values[:, t]
        later = delta + gamma * lam * advantages[:, t + 1]
        advantages[:, t] = np.where(mask[:, t + 1], later, reward - values[:, t])
    return advantages
