"""GSPO-token: GSPO's ratio and clip, with room for an advantage per token.

    A_i  = (R_i - mean_g R) / (std_g R + 1e-4)
    s_it = sg[s_i]·exp(logprob_t - sg[logprob_t]),  s_i = exp(mean_t (logprob - old))
    L    = mean over rollouts of mean_t -min(s_t·A_t, clip(s_t, 1-ε_low, 1+ε_high)·A_t)

With one advantage per rollout, as here, its loss and gradient are GSPO's.

Source: arXiv:2507.18071, section 4.3, eq. 13 and 14.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale


@algorithms.register("gspo_token")
def gspo_token(*, clip_low: float = 3e-4, clip_high: float = 4e-4, scale: Scale = "std", **common: Any) -> Algorithm:
    """GSPO-token: GSPO with advantages per token (arXiv:2507.18071).

    Args:
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        scale: divides the advantage: std = the deviation of its group, batch = of the whole batch, none = nothing.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import gspo_token

    require_choice("scale", scale, ("std", "batch", "none"))
    return policy_gradient(
        "gspo_token",
        partial(group_advantages, scale=scale),
        partial(gspo_token, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
        **common,
    )
