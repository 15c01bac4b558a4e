"""Clip-Cov: a few tokens whose log-probability and advantage rise together are left out, for they cost the most entropy.

    A_i   = (R_i - mean_g R) / (std_g R + 1e-4)
    Cov_t = (logprob_t - mean logprob)·(A_t - mean A)
    L     = mean over tokens of l_t,  l_t = 0 for t in I,  else -min(r·A, clip(r, 0, 2)·A)
    I     = the share `fraction` of the n tokens, drawn from those with ω_low ≤ Cov_t ≤ ω_high

Means, and the share, are of the tokens of a micro-batch. One token at least is drawn, if any lies there: of the 3072 tokens of
the embedded stack's default step that is all.

Source: arXiv:2505.22617, section 4.2. Departs from it: the draw is a hash of the token's own numbers, so that a run that goes
on makes the same choices; as in its authors' code, the ratio is clipped too, and one token at least is drawn.
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
        scale: divides the advantage: std = the deviation of its group, batch = of the whole batch, none = nothing.
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
