"""Group relative policy optimisation: a rollout is judged against the other rollouts of its prompt.

A_i = (R_i - mean_g R) / (std_g R + 1e-4)
L   = mean over tokens of [ -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A) + β·KL(policy ‖ reference) ]

Source: arXiv:2402.03300. Departs from it: the mean goes over all tokens of the batch (the paper's per-rollout mean is
`aggregation: sequence_mean`; the same thing while all images have one size); β is 0 by default.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from xomni_rl.policies.algorithms.base import (
    Algorithm,
    AlgorithmError,
    KLPlace,
    algorithms,
    require_at_least,
    require_choice,
)

if TYPE_CHECKING:
    from xomni_rl.policies.advantages import Scale
    from xomni_rl.policies.losses import Aggregation, KLEstimator


@algorithms.register("grpo")
def grpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: Aggregation = "token_mean",
    scale: Scale = "std",
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    kl_in: KLPlace = "loss",
    filter: str = "keep_all",
) -> Algorithm:
    """GRPO: group-relative advantages, clipped token ratios (arXiv:2402.03300).

    Args:
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1; larger than clip_low is DAPO's "clip-higher" (arXiv:2503.14476).
        aggregation: token_mean, sequence_mean or constant_length.
        scale: std, or none to leave the advantage unscaled.
        kl_coef: β, weight of the KL to the model training began from; 0 = no reference is computed.
        kl_estimator: k1, k2 or k3; k1 belongs in the reward, k2 and k3 in the loss.
        kl_in: "loss", or "reward" to take the KL from the reward before advantages.
        filter: keep_all, or drop_zero_variance to leave out groups whose rewards are all equal.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.filters import FILTERS
    from xomni_rl.policies.losses import clipped_policy_loss

    options: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "kl_coef": kl_coef}
    for option, value in options.items():
        require_at_least(option, value, 0.0)
    if clip_low > 1.0:
        raise AlgorithmError(f"algorithm.options.clip_low must be at most 1, but is {clip_low}")
    require_choice("aggregation", aggregation, ("token_mean", "sequence_mean", "constant_length"))
    require_choice("scale", scale, ("std", "none"))
    require_choice("kl_estimator", kl_estimator, ("k1", "k2", "k3"))
    require_choice("kl_in", kl_in, ("loss", "reward"))
    require_choice("filter", filter, FILTERS)
    return Algorithm(
        name="grpo",
        advantage=partial(group_advantages, scale=scale),
        loss=partial(
            clipped_policy_loss,
            clip_low=clip_low,
            clip_high=clip_high,
            aggregation=aggregation,
            kl_coef=kl_coef if kl_in == "loss" else 0.0,
            kl_estimator=kl_estimator,
        ),
        filter=FILTERS[filter],
        needs_reference=kl_coef > 0,
        kl_in_reward=kl_coef if kl_in == "reward" else 0.0,
        kl_estimator=kl_estimator,
    )
