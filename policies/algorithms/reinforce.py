"""REINFORCE: the score function times the advantage, strictly on policy.

A_i as in GRPO;  L = mean over tokens of -A·logprob

Source: R. J. Williams, "Simple statistical gradient-following algorithms", 1992.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale


@algorithms.register("reinforce")
def reinforce(*, scale: Scale = "std", **common: Any) -> Algorithm:
    """REINFORCE with group-relative advantages, no ratio and no clip.

    Args:
        scale: std, batch, or none to leave the advantage unscaled.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import reinforce as score_function

    require_choice("scale", scale, ("std", "batch", "none"))
    return policy_gradient(
        "reinforce",
        partial(group_advantages, scale=scale),
        score_function,
        **common,
    )
