"""Which rollouts take part in an update: plain functions (rewards, weights, group) -> bool [N], True = takes part.

A rollout without a reward (nothing applied to it, or its scoring failed) never takes part. Conventions as in
`xomni_rl.policies.advantages`.
"""

from __future__ import annotations

import numpy as np

from xomni_rl.policies.advantages import combine_rewards
from xomni_rl.policies.shapes import check_shapes


def keep_all(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Every rollout that has a reward.

    Args:
        rewards: [N, K] float; NaN = not applicable or failed.
        weights: [K] float; 0 = logged only.
        group: [N] int.
    Returns: [N] bool; True = takes part in the update.
    Raises: ValueError if shapes or dtypes differ.
    """
    check_shapes(rewards=(rewards, "N K", "float"), weights=(weights, "K", "number"), group=(group, "N", "int"))
    return ~np.isnan(combine_rewards(rewards, weights))


def drop_zero_variance(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Every rollout of a group whose rewards differ; groups that teach nothing are left out.

    Their advantages are 0, so dropping them changes no gradient's direction; it does raise the weight of the rest
    under a mean, and saves their part of the update.

    Args:
        rewards: [N, K] float; NaN = not applicable or failed.
        weights: [K] float; 0 = logged only.
        group: [N] int.
    Returns: [N] bool; True = takes part in the update. All False if no group's rewards differ.
    Raises: ValueError if shapes or dtypes differ.
    Source: arXiv:2503.14476, section 3.2. Departs from it: dropped groups are not sampled again.
    """
    keep = keep_all(rewards, weights, group)
    varies = _varies(rewards, weights, group)
    _, index = np.unique(group, return_inverse=True)
    return keep & varies[index]


def zero_variance_share(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> float | None:
    """Share of the groups with a reward whose rewards are all equal: groups that teach nothing.

    Returns: a number in [0, 1], or None if no rollout has a reward (there is no share to speak of).
    Raises: ValueError if shapes or dtypes differ.
    """
    keep = keep_all(rewards, weights, group)
    if not keep.any():
        return None
    _, index = np.unique(group, return_inverse=True)
    scored_groups = np.unique(index[keep])
    return float(1.0 - _varies(rewards, weights, group)[scored_groups].mean())


def _varies(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Whether the rewards of each group differ, by ascending group id. -> [groups] bool."""
    reward = combine_rewards(rewards, weights)
    scored = ~np.isnan(reward)
    ids, index = np.unique(group, return_inverse=True)
    highest, lowest = np.full(len(ids), -np.inf), np.full(len(ids), np.inf)
    np.maximum.at(highest, index[scored], reward[scored])
    np.minimum.at(lowest, index[scored], reward[scored])
    return highest > lowest


FILTERS = {"keep_all": keep_all, "drop_zero_variance": drop_zero_variance}
