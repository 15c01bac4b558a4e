"""GMPO: the geometric instead of the arithmetic mean over a rollout's tokens, which outliers move less.

    A_i = (R_i - mean_g R) / (std_g R + 1e-4)
    c_t = the log-ratio of token t, at most ε_high if A > 0, at least -ε_low if A ≤ 0
    L   = mean over rollouts of -A·exp(mean_t c_t)

Source: arXiv:2507.20673, objective J_GMPO and its bounds (e^-0.4, e^0.4).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale


@algorithms.register("gmpo")
def gmpo(*, clip_low: float = 0.4, clip_high: float = 0.4, scale: Scale = "std", **common: Any) -> Algorithm:
    """GMPO: geometric mean of clipped token ratios (arXiv:2507.20673).

    Args:
        clip_low, clip_high: how far a token's log-ratio may go, nats.
        scale: divides the advantage: std = the deviation of its group, batch = of the whole batch, none = nothing.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import gmpo

    require_choice("scale", scale, ("std", "batch", "none"))
    return policy_gradient(
        "gmpo",
        partial(group_advantages, scale=scale),
        partial(gmpo, clip_low=clip_low, clip_high=clip_high),
        aggregation="sequence_mean",
        **common,
    )
