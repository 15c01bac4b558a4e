"""Advantages that only say which rollouts were chosen: for supervised and preference baselines."""

from __future__ import annotations

import numpy as np

from xomni_rl.policies.advantages.common import group_count, group_ranks, group_varies, scored_rewards


def preference_advantages(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """+1 for the best rollout of each group, -1 for the worst, 0 for all others: the pair that a preference loss compares.

    Best and worst go by R from `combine_rewards`; of equal ones the earliest is the best and the last the worst. A group whose
    rewards are all equal, or that has fewer than two, has no pair: all 0.

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float.
        group: [N] int; equal = rollouts of one prompt.
    Returns: [N] float32; NaN where the rollout has no reward.
    Raises: ValueError if shapes or dtypes differ.
    Source: the on-line pairs of arXiv:2402.04792. Departs from it: there a language model judges two samples; here the reward
        picks two of a group.
    """
    reward, scored, index = scored_rewards(rewards, weights, group)
    ranks, last = group_ranks(reward, index, scored), group_count(index, scored)[index] - 1
    signs = (ranks == 0).astype(np.float64) - (ranks == last)
    return np.where(scored, np.where(group_varies(reward, index, scored)[index], signs, 0.0), np.nan).astype(np.float32)


def best_indicator_advantages(
    rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, min_reward: float | None = None
) -> np.ndarray:
    """1 for the best rollout of each group if it is good enough, 0 for all others: what best-of-N fine-tuning learns from.

    Best goes by R from `combine_rewards`, the earliest of equal ones. Good enough is R ≥ min_reward, or, with None, better than
    the group's worst.

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float.
        group: [N] int; equal = rollouts of one prompt.
        min_reward: in the rewards' units; None = better than the worst.
    Returns: [N] float32; NaN where the rollout has no reward.
    Raises: ValueError if shapes or dtypes differ, or min_reward is NaN.
    Source: reward-ranked fine-tuning, arXiv:2304.06767, there the best of each prompt whatever it is worth (min_reward = -inf).
    """
    if min_reward is not None and np.isnan(min_reward):
        raise ValueError("min_reward must be a number or None, but is nan")
    reward, scored, index = scored_rewards(rewards, weights, group)
    if min_reward is None:
        good = group_varies(reward, index, scored)[index]
    else:
        good = reward.astype(np.float32) >= np.float32(min_reward)  # rewards are float32: 0.9 must reach 0.9
    return np.where(scored, (group_ranks(reward, index, scored) == 0) & good, np.nan).astype(np.float32)
