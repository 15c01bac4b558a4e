"""Group relative policy optimisation: a rollout is judged against the other rollouts of its prompt.

    A_i = (R_i - mean_g R) / (std_g R + 1e-4)
    L   = mean over tokens of [ -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A) + β·KL(policy ‖ reference) ]

Source: arXiv:2402.03300. Departs from it: the mean goes over all tokens of the batch (the paper's per-rollout mean is
`aggregation: sequence_mean`; the same thing while all images have one size); β is 0 by default.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale
    from xomni_rl.policies.losses import Aggregation


@algorithms.register("grpo")
def grpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregation: Aggregation = "token_mean",
    scale: Scale = "std",
    **common: Any,
) -> Algorithm:
    """GRPO: group-relative advantages, clipped token ratios (arXiv:2402.03300).

    Args:
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        dual_clip: bound on the ratio where the advantage is negative, above 1 (arXiv:1912.09729); None = no bound.
        aggregation: token_mean, sequence_mean or constant_length.
        scale: divides the advantage: std = the deviation of its group, batch = of the whole batch, none = nothing.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clipped

    require_choice("scale", scale, ("std", "batch", "none"))
    return policy_gradient(
        "grpo",
        partial(group_advantages, scale=scale),
        partial(clipped, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip),
        aggregation=aggregation,
        **common,
    )
