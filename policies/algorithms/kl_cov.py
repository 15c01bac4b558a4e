"""KL-Cov: the tokens whose log-probability and advantage rise together most are held near the old policy.

Source: arXiv:2505.22617, section 4.2; the page of the surrogate says where it departs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale


@algorithms.register("kl_cov")
def kl_cov(*, fraction: float = 2e-3, coef: float = 1.0, scale: Scale = "std", **common: Any) -> Algorithm:
    """KL-Cov: a KL on high-covariance tokens (arXiv:2505.22617).

    Args:
        fraction: share of the tokens that are held.
        coef: weight of their KL.
        scale: std, batch, or none to leave the advantage unscaled.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import kl_cov as kl_cov_surrogate

    require_choice("scale", scale, ("std", "batch", "none"))
    return policy_gradient(
        "kl_cov",
        partial(group_advantages, scale=scale),
        partial(kl_cov_surrogate, fraction=fraction, coef=coef),
        **common,
    )
