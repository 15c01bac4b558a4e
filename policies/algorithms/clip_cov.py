"""Clip-Cov: a few tokens whose log-probability and advantage rise together are left out, for they cost the most entropy.

Source: arXiv:2505.22617, section 4.2; the page of the surrogate says where it departs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale


@algorithms.register("clip_cov")
def clip_cov(
    *, fraction: float = 2e-4, covariance_low: float = 1.0, covariance_high: float = 5.0, scale: Scale = "std", **common: Any
) -> Algorithm:
    """Clip-Cov: high-covariance tokens lose their gradient (arXiv:2505.22617).

    Args:
        fraction: share of the tokens that is held back.
        covariance_low, covariance_high: they are drawn from those whose covariance lies between.
        scale: std, batch, or none to leave the advantage unscaled.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clip_cov as clip_cov_surrogate

    require_choice("scale", scale, ("std", "batch", "none"))
    return policy_gradient(
        "clip_cov",
        partial(group_advantages, scale=scale),
        partial(clip_cov_surrogate, fraction=fraction, covariance_low=covariance_low, covariance_high=covariance_high),
        **common,
    )
