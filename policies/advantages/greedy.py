"""Advantages against the greedy image: the one of the most likely tokens, drawn once for each prompt."""

from __future__ import annotations

import numpy as np

from xomni_rl.policies.advantages.common import combine_rewards
from xomni_rl.policies.shapes import check_shapes


def remax_advantages(rewards: np.ndarray, weights: np.ndarray, group: np.ndarray, *, greedy: np.ndarray) -> np.ndarray:
    """Each rollout's reward less that of the greedy image of its prompt.

    A_i = R_i - R°_i
    with R_i from `combine_rewards` on the components of rollout i, R°_i on those of the greedy image of i's prompt, both over
    the components that apply to both: a component that one of the two lacks would otherwise shift the average. The baseline
    does not depend on the rollout, so the gradient is unbiased, and one rollout per prompt will do.

    Args:
        rewards: [N, K] float, as scored (a composite with `normalisation: none`); NaN = not applicable.
        weights: [K] float.
        group: [N] int; not used, but checked.
        greedy: [N, K] float; row i = component scores of the greedy image of i's prompt, in the units of `rewards`.
    Returns: [N] float32, in units of the reward; NaN where no weighted component applies to both.
    Raises: ValueError if shapes or dtypes differ, or a weight is not finite.
    Source: arXiv:2310.10505, the greedy response's reward as baseline. Departs from it: several components; where a KL is in
        the reward, it is taken from the rollout's alone.
    """
    check_shapes(
        rewards=(rewards, "N K", "float"),
        weights=(weights, "K", "number"),
        group=(group, "N", "int"),
        greedy=(greedy, "N K", "float"),
    )
    either = np.isnan(rewards) | np.isnan(greedy)
    sampled, baseline = (combine_rewards(np.where(either, np.nan, scores), weights) for scores in (rewards, greedy))
    return (sampled.astype(np.float64) - baseline).astype(np.float32)
