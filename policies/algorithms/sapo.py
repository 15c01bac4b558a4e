"""SAPO: a soft gate in place of the hard clip.

l = -σ(τ·(r - 1))·4/τ·A, with a temperature τ of its own for each sign of A

Source: arXiv:2511.20347.
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
        scale: std, batch, or none to leave the advantage unscaled.
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
