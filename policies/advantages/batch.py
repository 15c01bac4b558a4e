"""Advantages against the whole batch: no group is needed, so that one rollout per prompt will do."""

from __future__ import annotations

from typing import Literal

import numpy as np

from xomni_rl.policies.advantages.common import (
    check_at_least,
    check_choice,
    divided,
    group_mean,
    scored_rewards,
    standardised,
)

BatchScale = Literal["std", "none"]
Baseline = Literal["none", "group"]


def batch_advantages(
    rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, scale: BatchScale = "std", eps: float = 1e-4
) -> np.ndarray:
    """Each rollout's reward relative to all rollouts of the batch.

    A_i = (R_i - mean R) / (std R + eps)   scale="std"
    A_i =  R_i - mean R                    scale="none"
    with R from `combine_rewards`, mean and std (n - 1) over all rollouts that have a reward. Prompts of different difficulty
    share one baseline, so a rollout is also praised for having been given an easy prompt.

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float.
        group: [N] int; not used, but checked.
        scale: "std", or "none" for REINFORCE with the batch mean as its baseline.
        eps: added to the standard deviation, ≥ 0.
    Returns: [N] float32; NaN where the rollout has no reward. All 0 if the rewards are equal, or there is only one.
    Raises: ValueError if shapes or dtypes differ, scale is unknown or eps is negative.
    Source: scale="none": a mean baseline, Williams 1992, "Simple statistical gradient-following algorithms"; scale="std": the
        whitening usual in PPO, of rewards instead of advantages.
    """
    check_choice("scale", scale, ("std", "none"))
    check_at_least("eps", eps, 0.0)
    reward, scored, _ = scored_rewards(rewards, weights, group)
    if scale == "none":
        return (reward - (reward[scored].mean() if scored.any() else 0.0)).astype(np.float32)
    return standardised(reward, scored, eps).astype(np.float32)


def reinforce_pp_advantages(
    rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, baseline: Baseline = "none", eps: float = 1e-4
) -> np.ndarray:
    """REINFORCE++: rewards whitened over the whole batch, in the baseline variant less their group's mean first.

    A_i = (R_i - mean R) / (std R + eps)      baseline="none"
    D_i =  R_i - mean_g R
    A_i =  D_i / (std D + eps)                baseline="group"; the mean of D over the batch is 0 as it is
    with R from `combine_rewards`, mean_g over the rollouts of i's group that have a reward, mean and std (n - 1) over all that
    have one. R is to be the reward less its KL: `kl_in: reward`, that is `rewards_with_kl`, has taken it off already. Dividing
    by one number for all groups, instead of each group's own, does not favour prompts whose rewards hardly differ.

    Args:
        rewards: [N, K] float, less the KL where there is one; NaN = not applicable.
        weights: [K] float.
        group: [N] int; equal = rollouts of one prompt.
        baseline: "none", or "group" for REINFORCE++-baseline (there a group of one has advantage 0).
        eps: added to the standard deviation, ≥ 0.
    Returns: [N] float32, unitless; NaN where the rollout has no reward. 0 where all that is whitened is equal.
    Raises: ValueError if shapes or dtypes differ, baseline is unknown or eps is negative.
    Source: arXiv:2501.03262, global advantage normalization, and REINFORCE++ with baseline. Departs from it: a rollout's KL is
        taken off as one number, where the paper's advantage at a token holds the KL from that token on; the paper's baseline
        variant has its KL in the loss (k2); eps; rollouts without a reward take no part.
    """
    check_choice("baseline", baseline, ("none", "group"))
    check_at_least("eps", eps, 0.0)
    reward, scored, index = scored_rewards(rewards, weights, group)
    if baseline == "none":
        return standardised(reward, scored, eps).astype(np.float32)
    centred = reward - group_mean(reward, index, scored)[index]
    std = np.sqrt((centred[scored] ** 2).sum() / max(int(scored.sum()) - 1, 1))
    return divided(centred, std, eps).astype(np.float32)
