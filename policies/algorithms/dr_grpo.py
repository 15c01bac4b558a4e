"""GRPO done right: GRPO without its two biases.

A_i = R_i - mean_g R
L   = Σ over tokens of [ -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A) ] / (rollouts · T)

Not dividing by the group's standard deviation leaves easy and hard prompts at the weight their rewards give them; the
constant divisor leaves long and short rollouts at equal weight per token.

Source: arXiv:2503.20783, section 3.2. Departs from it: a KL penalty can be added, as in GRPO.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xomni_rl.policies.algorithms.base import Algorithm, KLPlace, algorithms
from xomni_rl.policies.algorithms.grpo import grpo

if TYPE_CHECKING:
    from xomni_rl.policies.losses import KLEstimator


@algorithms.register("dr_grpo")
def dr_grpo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    kl_in: KLPlace = "loss",
    filter: str = "keep_all",
) -> Algorithm:
    """Dr. GRPO: no division by the group's deviation, constant-length mean (arXiv:2503.20783).

    Args: as in `grpo`, without aggregation and scale, which are what makes it Dr. GRPO.
    Raises: AlgorithmError for a value out of range.
    """
    algorithm = grpo(
        clip_low=clip_low,
        clip_high=clip_high,
        aggregation="constant_length",
        scale="none",
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
        kl_in=kl_in,
        filter=filter,
    )
    return replace(algorithm, name="dr_grpo")
