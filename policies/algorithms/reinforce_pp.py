"""REINFORCE++: rewards less a KL, standardised over the batch instead of within groups.

    A_i = (R_i - mean R) / (std R + 1e-4)                  over the batch
    A_i = (R_i - mean_g R) / (std (R - mean_g R) + 1e-4)   with baseline: group
    L   = mean over tokens of -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A)

Source: arXiv:2501.03262. Departs from it: the KL is taken from a rollout's reward as one number instead of token by token, and
is off unless `kl_coef` says otherwise.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, KLPlace, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Baseline
    from xomni_rl.policies.losses import KLEstimator


@algorithms.register("reinforce_pp")
def reinforce_pp(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    baseline: Baseline = "none",
    kl_in: KLPlace = "reward",
    kl_estimator: KLEstimator = "k1",
    **common: Any,
) -> Algorithm:
    """REINFORCE++: advantages standardised over the batch (arXiv:2501.03262).

    Args:
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        baseline: none, or group for the variant that takes each group's mean off first.
        kl_in, kl_estimator: by default a KL, if there is one, is taken from the reward, with k1.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import reinforce_pp_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clipped

    require_choice("baseline", baseline, ("none", "group"))
    return policy_gradient(
        "reinforce_pp",
        partial(reinforce_pp_advantages, baseline=baseline),
        partial(clipped, clip_low=clip_low, clip_high=clip_high),
        least_group_size=2 if baseline == "group" else 1,
        kl_in=kl_in,
        kl_estimator=kl_estimator,
        **common,
    )
