"""Advantages within a group: a rollout against the other rollouts of its prompt."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from xomni_rl.policies.advantages.common import (
    check_at_least,
    check_choice,
    divided,
    group_count,
    group_mean,
    group_std,
    scored_rewards,
)
from xomni_rl.policies.shapes import check_shapes

Scale = Literal["std", "batch", "none"]


def group_advantages(
    rewards: np.ndarray,
    weights: np.ndarray,
    group: np.ndarray,
    *,
    scale: Scale = "std",
    eps: float = 1e-4,
) -> np.ndarray:
    """Each rollout's reward relative to the other rollouts of its prompt.

    A_i = (R_i - mean_g R) / (std_g R + eps)       scale="std"
    A_i = (R_i - mean_g R) / (std_batch R + eps)   scale="batch"
    A_i =  R_i - mean_g R                          scale="none"
    with R from `combine_rewards`, and mean_g, std_g over the rollouts of i's group that have a reward, std_batch over all
    that have one; both deviations divide by n - 1. A group of one, and a group whose rewards are all equal, has advantage 0.

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float.
        group: [N] int; equal = rollouts of one prompt.
        scale: "std" (GRPO), "batch" (Lite PPO) or "none" (Dr. GRPO).
        eps: added to the standard deviation, ≥ 0.
    Returns: [N] float32, unitless; NaN where the rollout has no reward.
    Raises: ValueError if shapes or dtypes differ, scale is unknown or eps is negative.
    Source: arXiv:2402.03300, section 4.1.2; scale="batch": arXiv:2508.08221, where the deviation is that of the rewards, not
        of their distances from the group means (for which see `reinforce_pp_advantages`); scale="none": arXiv:2503.20783,
        section 3.2. Departs from all: rollouts without a reward take no part; eps.
    """
    check_choice("scale", scale, ("std", "batch", "none"))
    check_at_least("eps", eps, 0.0)
    reward, scored, index = scored_rewards(rewards, weights, group)
    centred = reward - group_mean(reward, index, scored)[index]
    if scale == "none":
        return centred.astype(np.float32)
    if scale == "std":
        return divided(centred, group_std(centred, index, scored)[index], eps).astype(np.float32)
    std = reward[scored].std(ddof=1) if scored.sum() > 1 else 0.0
    return divided(centred, std, eps).astype(np.float32)


def rloo_advantages(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Each rollout's reward less the mean reward of the others of its prompt (REINFORCE leave-one-out).

    A_i = R_i - 1/(n-1) · Σ_{j in g, j≠i} R_j  =  n/(n-1) · (R_i - mean_g R)
    with R from `combine_rewards`, g the rollouts of i's group that have a reward, and n their number. The baseline does not
    depend on rollout i, so the gradient is unbiased. A rollout alone in its group has advantage 0.

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float.
        group: [N] int; equal = rollouts of one prompt.
    Returns: [N] float32, in units of the reward; NaN where the rollout has no reward.
    Raises: ValueError if shapes or dtypes differ.
    Source: arXiv:2402.14740, section on the RLOO estimator, there with k for n. Departs from it: rollouts without a reward
        take no part; the paper has no answer for n = 1.
    """
    reward, scored, index = scored_rewards(rewards, weights, group)
    centred = reward - group_mean(reward, index, scored)[index]
    count = group_count(index, scored)
    return (centred * (count / np.maximum(count - 1, 1))[index]).astype(np.float32)


def opo_advantages(
    rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, lengths: np.ndarray | None = None
) -> np.ndarray:
    """Each rollout's reward less the baseline that makes the gradient's variance least, if tokens' gradients are alike.

    A_i = R_i - Σ_{j in g} l_j R_j / Σ_{j in g} l_j
    with R from `combine_rewards`, g the rollouts of i's group that have a reward, and l_j their numbers of tokens: the squared
    norm of a rollout's gradient, which weighs the optimal baseline, is taken to grow as its length. Equal lengths, as of
    images of one size, make it the group mean; then it is `group_advantages` with scale="none".

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float.
        group: [N] int; equal = rollouts of one prompt.
        lengths: [N] int, tokens of each rollout, ≥ 1; None = all equal.
    Returns: [N] float32, in units of the reward; NaN where the rollout has no reward. A group of one has advantage 0.
    Raises: ValueError if shapes or dtypes differ, or a length is below 1.
    Source: arXiv:2505.23585, the section on the optimal reward baseline. Departs from it: rollouts without a reward take no
        part. Exact on-policy training, the paper's other half, is `trainer.epochs=1 trainer.minibatches=1`.
    """
    reward, scored, index = scored_rewards(rewards, weights, group)
    centred = reward - group_mean(reward, index, scored)[index]
    if lengths is None:
        return centred.astype(np.float32)
    check_shapes(group=(group, "N", "int"), lengths=(lengths, "N", "int"))
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"lengths must be 1 or more, but the smallest is {lengths.min()}")
    # The weighted mean of centred rewards, rather than of rewards, so that equal rewards give exactly 0.
    baseline = group_mean(centred * lengths, index, scored) / group_mean(lengths.astype(np.float64), index, scored)
    return (centred - baseline[index]).astype(np.float32)


def pass_at_k_advantages(
    rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, k: int = 4, threshold: float = 0.5
) -> np.ndarray:
    """What a rollout adds to the chance that at least one of k drawn from its group is right.

    ρ       = 1 - C(w, k) / C(n, k),   σ = sqrt(ρ (1 - ρ))
    A_right = (1 - ρ) / σ
    A_wrong = (1 - ρ - C(w-1, k-1) / C(n-1, k-1)) / σ
    with n the rollouts of the group that have a reward, w those of them with R < threshold (wrong), R from `combine_rewards`,
    and C(a, b) the number of ways to choose b of a. It is the average over all subsets of k that hold the rollout of
    (subset's best - ρ) / σ. Where σ is 0 nothing can be learnt and A is 0: no rollout is right, any k hold a right one
    (w < k), or n ≤ k. k = 1 is GRPO on right and wrong, with a deviation that divides by n.

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float.
        group: [N] int; equal = rollouts of one prompt.
        k: size of the subsets, ≥ 1 and at most the group's size; at the group's size every advantage is 0.
        threshold: combined reward from which a rollout is right, in the rewards' units.
    Returns: [N] float32, unitless; NaN where the rollout has no reward. Each group's sum to 0.
    Raises: ValueError if shapes or dtypes differ, k is below 1 or above every group's size, or threshold is not finite.
    Source: arXiv:2508.10751, equations 14 and 15. Departs from it: graded rewards are cut at a threshold; rollouts without a
        reward take no part; no constant is added to σ.
    """
    check_at_least("k", k, 1)
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite, but is {threshold!r}")
    reward, scored, index = scored_rewards(rewards, weights, group)
    largest = int(np.bincount(index).max(initial=0))
    if 0 < largest < k:
        raise ValueError(f"k must be at most the group size, but is {k} where the largest group has {largest} rollouts")
    right = scored & (reward.astype(np.float32) >= np.float32(threshold))  # rewards are float32: 0.9 must reach 0.9
    counts, rights = group_count(index, scored), group_count(index, right)
    pairs = [_pass_at_k(int(n), int(n - c), int(k)) for n, c in zip(counts, rights, strict=True)]
    of_group = np.array(pairs, dtype=np.float64).reshape(-1, 2)[index]
    return np.where(scored, np.where(right, of_group[:, 0], of_group[:, 1]), np.nan).astype(np.float32)


def _pass_at_k(n: int, wrong: int, k: int) -> tuple[float, float]:
    """Advantage of a right and of a wrong rollout among n of which `wrong` are wrong."""
    if n <= k or wrong == n or wrong < k:
        return 0.0, 0.0
    fails = math.comb(wrong, k) / math.comb(n, k)  # 1 - ρ
    sigma = math.sqrt(fails * (1.0 - fails))
    return fails / sigma, (fails - math.comb(wrong - 1, k - 1) / math.comb(n - 1, k - 1)) / sigma
