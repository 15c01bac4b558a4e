"""GDPO: every reward component normalised within its group, then summed, then standardised over the batch.

    z_ik = (r_ik - mean_g r_k) / (std_g r_k + 1e-4)
    S_i  = Σ_k w_k z_ik
    A_i  = (S_i - mean S) / (std S + 1e-4)
    L    = mean over tokens of -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A)

Rewards of different scales keep their say, which a sum before normalising takes from the narrower ones. Set
`reward.normalisation=none`, or components are normalised twice.

Source: arXiv:2601.05242. Departs from it: a component that does not apply to a rollout is left out of its sum.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient


@algorithms.register("gdpo")
def gdpo(*, clip_low: float = 0.2, clip_high: float = 0.2, **common: Any) -> Algorithm:
    """GDPO: components normalised in their group before they are summed (arXiv:2601.05242).

    Args:
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import gdpo_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clipped

    return policy_gradient(
        "gdpo",
        gdpo_advantages,
        partial(clipped, clip_low=clip_low, clip_high=clip_high),
        **common,
    )
