"""SAPO: a soft gate in place of the hard clip.

    A_i = (R_i - mean_g R) / (std_g R + 1e-4)
    L   = mean over rollouts of mean_t -(4/τ)·σ(τ·(r-1))·A,  τ = τ_positive if A > 0, else τ_negative

The further a token's ratio is from 1, the less the token pulls. τ is larger for A < 0, because a negative advantage raises all
other tokens.

Source: arXiv:2511.20347, section 3.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale


@algorithms.register("sapo")
def sapo(
    *, temperature_positive: float = 1.0, temperature_negative: float = 1.05, scale: Scale = "std", **common: Any
) -> Algorithm:
    """SAPO: a soft adaptive gate instead of a clip (arXiv:2511.20347).

    Args:
        temperature_positive, temperature_negative: τ for positive and negative advantages, above 0.
        scale: divides the advantage: std = the deviation of its group, batch = of the whole batch, none = nothing.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import sapo

    require_choice("scale", scale, ("std", "batch", "none"))
    return policy_gradient(
        "sapo",
        partial(group_advantages, scale=scale),
        partial(sapo, temperature_positive=temperature_positive, temperature_negative=temperature_negative),
        aggregation="sequence_mean",
        **common,
    )
