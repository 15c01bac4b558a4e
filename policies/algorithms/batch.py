"""REINFORCE against the mean reward of the batch, in units of its deviation.

    A_i = (R_i - mean R) / (std R + 1e-4)    over the batch
    L   = mean over tokens of -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A)

The oldest baseline: prompts of different difficulty are compared with each other. Works with one rollout per prompt.

Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992; the
clipped loss: arXiv:1707.06347, eq. 7. Departs from them: the reward is divided by its deviation over the batch, as
implementations of PPO do with advantages.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient


@algorithms.register("batch")
def batch(*, clip_low: float = 0.2, clip_high: float = 0.2, **common: Any) -> Algorithm:
    """Batch-standardised rewards as advantages: the plainest baseline.

    Args:
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import batch_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clipped

    return policy_gradient(
        "batch",
        batch_advantages,
        partial(clipped, clip_low=clip_low, clip_high=clip_high),
        least_group_size=1,
        **common,
    )
