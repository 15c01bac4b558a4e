"""REINFORCE: the score function times the advantage, strictly on policy.

    A_i = (R_i - mean_g R) / (std_g R + 1e-4)
    L   = mean over tokens of -A·logprob

What was sampled earlier is not corrected for: one update per rollout, which is `trainer.epochs=1 trainer.minibatches=1`.

Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992.
Departs from it: the baseline is the group's mean, and what is left is divided by the group's deviation.
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
        scale: divides the advantage: std = the deviation of its group, batch = of the whole batch, none = nothing.
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
