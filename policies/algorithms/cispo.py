"""CISPO: the importance weight is clipped and constant, so that every token keeps its gradient.

    A_i = (R_i - mean_g R) / (std_g R + 1e-4)
    L   = mean over tokens of -sg[clip(r, 1-ε_low, 1+ε_high)]·A·logprob

Source: arXiv:2506.13585, eq. 4 and 5; the largest weight of 5: arXiv:2510.13786.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale


@algorithms.register("cispo")
def cispo(*, clip_low: float = 1.0, clip_high: float = 4.0, scale: Scale = "std", **common: Any) -> Algorithm:
    """CISPO: clipped weights without a gradient on every token (arXiv:2506.13585).

    Args:
        clip_low: how far below 1 the weight may go; 1 = no bound.
        clip_high: the same above 1.
        scale: divides the advantage: std = the deviation of its group, batch = of the whole batch, none = nothing.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import cispo

    require_choice("scale", scale, ("std", "batch", "none"))
    return policy_gradient(
        "cispo",
        partial(group_advantages, scale=scale),
        partial(cispo, clip_low=clip_low, clip_high=clip_high),
        **common,
    )
