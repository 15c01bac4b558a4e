"""GSPO: one importance ratio for a whole rollout, the geometric mean of its tokens'.

    A_i = (R_i - mean_g R) / (std_g R + 1e-4)
    s_i = exp(mean_t (logprob - old))
    L   = mean over rollouts of -min(s·A, clip(s, 1-ε_low, 1+ε_high)·A)

The bounds are far narrower than PPO's, because s averages over many tokens.

Source: arXiv:2507.18071, eq. 5 and 7.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale


@algorithms.register("gspo")
def gspo(*, clip_low: float = 3e-4, clip_high: float = 4e-4, scale: Scale = "std", **common: Any) -> Algorithm:
    """GSPO: sequence-level importance ratios (arXiv:2507.18071).

    Args:
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        scale: divides the advantage: std = the deviation of its group, batch = of the whole batch, none = nothing.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import gspo

    require_choice("scale", scale, ("std", "batch", "none"))
    return policy_gradient(
        "gspo",
        partial(group_advantages, scale=scale),
        partial(gspo, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
        **common,
    )
