"""GRPO done right: GRPO without its two biases.

    A_i = R_i - mean_g R
    L   = Σ over tokens of [ -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A) ] / (rollouts · T)

Not dividing by the group's standard deviation leaves easy and hard prompts at the weight their rewards give them; the
constant divisor leaves long and short rollouts at equal weight per token.

Source: arXiv:2503.20783, section 3.2. Departs from it: a KL penalty can be added, as in GRPO.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient


@algorithms.register("dr_grpo")
def dr_grpo(*, clip_low: float = 0.2, clip_high: float = 0.2, **common: Any) -> Algorithm:
    """Dr. GRPO: no division by the group's deviation, constant-length mean (arXiv:2503.20783).

    Args:
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clipped

    return policy_gradient(
        "dr_grpo",
        partial(group_advantages, scale="none"),
        partial(clipped, clip_low=clip_low, clip_high=clip_high),
        aggregation="constant_length",
        **common,
    )
