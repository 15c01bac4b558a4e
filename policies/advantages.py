"""Advantages from rewards: plain functions on numpy arrays, one number per rollout.

Shared conventions: `rewards` is [N, K], one column per reward component, NaN where a component does not apply to a
rollout (or failed on it); `weights` is [K], 0 for a component that is only logged; `group` is [N], any integers, equal
for the rollouts of one prompt, in any order. A rollout to which no weighted component applies has no advantage: NaN.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from xomni_rl.policies.shapes import check_shapes

Scale = Literal["std", "none"]


def combine_rewards(rewards: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted average of the components that apply to each rollout.

    R_i = Σ_k w_k r_ik / Σ_k |w_k|,  both sums over the k with r_ik not NaN and w_k ≠ 0

    Args:
        rewards: [N, K] float, unitless; NaN = not applicable.
        weights: [K] float; negative = a penalty, 0 = logged only.
    Returns: [N] float32; NaN where no weighted component applies.
    Raises: ValueError if shapes or dtypes differ, or a weight is not finite.
    Source: ours. The divisor takes |w| so that a penalty keeps its sign.
    """
    check_shapes(rewards=(rewards, "N K", "float"), weights=(weights, "K", "number"))
    if not np.isfinite(weights).all():
        raise ValueError(f"weights must be finite, but are {np.asarray(weights).tolist()}")
    used = np.asarray(weights) != 0
    values = rewards[:, used].astype(np.float64)
    applies = ~np.isnan(values)
    signed = np.where(applies, np.asarray(weights, dtype=np.float64)[used], 0.0)
    total = np.abs(signed).sum(axis=1)
    weighted = (signed * np.where(applies, values, 0.0)).sum(axis=1)
    return np.where(total > 0, weighted / np.where(total > 0, total, 1.0), np.nan).astype(np.float32)


def group_advantages(
    rewards: np.ndarray,
    weights: np.ndarray,
    group: np.ndarray,
    *,
    scale: Scale = "std",
    eps: float = 1e-4,
) -> np.ndarray:
    """Each rollout's reward relative to the other rollouts of its prompt.

    A_i = (R_i - mean_g R) / (std_g R + eps)   scale="std"
    A_i =  R_i - mean_g R                      scale="none"
    with R from `combine_rewards`, and mean_g, std_g over the rollouts of i's group that have a reward; std_g divides
    by n - 1. A group of one, and a group whose rewards are all equal, has advantage 0.

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float.
        group: [N] int; equal = rollouts of one prompt.
        scale: "std" (GRPO) or "none" (Dr. GRPO).
        eps: added to the standard deviation, ≥ 0.
    Returns: [N] float32, unitless; NaN where the rollout has no reward.
    Raises: ValueError if shapes or dtypes differ, scale is unknown or eps is negative.
    Source: arXiv:2402.03300, section 4.1.2; scale="none": arXiv:2503.20783, section 3.2. Departs from both: rollouts
        without a reward take no part.
    """
    check_shapes(rewards=(rewards, "N K", "float"), weights=(weights, "K", "number"), group=(group, "N", "int"))
    if scale not in ("std", "none"):
        raise ValueError(f'scale must be "std" or "none", but is {scale!r}')
    if eps < 0:
        raise ValueError(f"eps must be 0 or more, but is {eps}")
    reward = combine_rewards(rewards, weights).astype(np.float64)
    scored = ~np.isnan(reward)
    _, index = np.unique(group, return_inverse=True)
    centred = reward - _group_mean(reward, index, scored)[index]
    if scale == "none":
        return centred.astype(np.float32)
    std = _group_std(centred, index, scored)[index]
    divisor = np.where(std > 0, std + eps, 1.0)
    return (centred / divisor).astype(np.float32)


def rewards_with_kl(rewards: np.ndarray, weights: np.ndarray, kl: np.ndarray, kl_coef: float) -> np.ndarray:
    """Rewards less the cost of having moved from the reference policy, to be given to an advantage function.

    r'_ik = r_ik - sign(w_k) · kl_coef · KL_i  for w_k ≠ 0, so that combine_rewards(r')_i = R_i - kl_coef · KL_i

    Args:
        rewards: [N, K] float; NaN stays NaN, and a component of weight 0 stays as it is.
        weights: [K] float.
        kl: [N] float, nats; KL of each whole rollout, from `xomni_rl.policies.losses.sequence_kl`.
        kl_coef: reward per nat, ≥ 0.
    Returns: [N, K] float32, a new array.
    Raises: ValueError if shapes or dtypes differ or kl_coef is negative.
    Source: arXiv:2009.01325, section 3.4 (there per token; here per rollout, because a rollout has one reward).
    """
    check_shapes(rewards=(rewards, "N K", "float"), weights=(weights, "K", "number"), kl=(kl, "N", "float"))
    if kl_coef < 0:
        raise ValueError(f"kl_coef must be 0 or more, but is {kl_coef}")
    return (rewards - np.sign(weights) * (kl_coef * kl)[:, None]).astype(np.float32)


def _group_mean(values: np.ndarray, index: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Mean of the counted values of each group; NaN for a group with none. values [N], index [N] -> [groups]."""
    size = int(index.max(initial=-1)) + 1
    count = np.bincount(index[counted], minlength=size)
    total = np.bincount(index[counted], weights=values[counted], minlength=size)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _group_std(centred: np.ndarray, index: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Standard deviation (n - 1) of each group from centred values; 0 for fewer than two. [N], [N] -> [groups]."""
    size = int(index.max(initial=-1)) + 1
    count = np.bincount(index[counted], minlength=size)
    squares = np.bincount(index[counted], weights=centred[counted] ** 2, minlength=size)
    return np.sqrt(squares / np.maximum(count - 1, 1))
