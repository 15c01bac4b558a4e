"""KL-Cov: the tokens whose log-probability and advantage rise together most are held near the old policy.

    A_i   = (R_i - mean_g R) / (std_g R + 1e-4)
    Cov_t = (logprob_t - mean logprob)·(A_t - mean A)
    L     = mean over tokens of l_t,  l_t = -r·A + β·|logprob - old| for t in I,  else -r·A
    I     = the share `fraction` of the n tokens with the highest Cov_t

There is no clip. Means, and the share, are of the tokens of a micro-batch: of the 3072 tokens of the embedded stack's default
step, 6.

Source: arXiv:2505.22617, section 4.2, `fraction` and β of its 7B model. Departs from it as its authors' code does: the KL is
estimated by the absolute log-ratio, and at least one token is chosen.
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
        scale: divides the advantage: std = the deviation of its group, batch = of the whole batch, none = nothing.
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
