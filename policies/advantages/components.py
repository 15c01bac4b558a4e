"""Advantages that look at each reward component on its own before they are added up."""

from __future__ import annotations

import numpy as np

from xomni_rl.policies.advantages.common import check_at_least, divided, group_mean, group_std, standardised
from xomni_rl.policies.shapes import check_shapes


def gdpo_advantages(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, eps: float = 1e-4) -> np.ndarray:
    """Components normalised each within its group, added by weight, and the sums standardised over the batch.

    z_ik = (r_ik - mean_g r_k) / (std_g r_k + eps)
    S_i  = Σ_k w_k z_ik                               over the k with w_k ≠ 0 and r_ik not NaN
    A_i  = (S_i - mean S) / (std S + eps)
    with mean_g r_k, std_g r_k over the rollouts of i's group that component k applies to, mean S, std S over all rollouts that
    have any component; both deviations divide by n - 1. Adding raw rewards first, as GRPO does, gives the same advantage to
    every combination of components with the same sum; here they stay apart.

    A composite with `normalisation: group` has computed z already, and hands it over as the rewards. What follows then differs:
    `group_advantages` averages z over the components that apply, instead of adding them, and divides by each *group's*
    deviation, which lifts a group whose components disagree to the scale of one where they agree; GDPO divides by the
    *batch's*. With GDPO the composite's `normalisation` is best left at `none`; z normalised again is z again but for eps.

    Args:
        rewards: [N, K] float; NaN = not applicable.
        weights: [K] float; negative = a penalty, 0 = logged only.
        group: [N] int; equal = rollouts of one prompt.
        eps: added to both standard deviations, ≥ 0.
    Returns: [N] float32, unitless; NaN where no weighted component applies. 0 everywhere if all S are equal.
    Raises: ValueError if shapes or dtypes differ, a weight is not finite or eps is negative.
    Source: arXiv:2601.05242, group-wise normalisation of each reward, then batch-wise of the sum; the numbers of TRL 1.16's
        "normalize_then_sum". Departs from it: components that do not apply are left out of the sum; eps. A KL belongs in the
        loss: in the reward it is taken from every component, and each is then normalised.
    """
    check_at_least("eps", eps, 0.0)
    check_shapes(rewards=(rewards, "N K", "float"), weights=(weights, "K", "number"), group=(group, "N", "int"))
    if not np.isfinite(weights).all():
        raise ValueError(f"weights must be finite, but are {np.asarray(weights).tolist()}")
    _, index = np.unique(group, return_inverse=True)
    total, scored = np.zeros(len(rewards)), np.zeros(len(rewards), dtype=bool)
    for k in np.flatnonzero(weights):
        values = rewards[:, k].astype(np.float64)
        applies = ~np.isnan(values)
        centred = values - group_mean(values, index, applies)[index]
        normalised = divided(centred, group_std(centred, index, applies)[index], eps)
        total += np.where(applies, float(weights[k]) * normalised, 0.0)
        scored |= applies
    return standardised(np.where(scored, total, np.nan), scored, eps).astype(np.float32)
