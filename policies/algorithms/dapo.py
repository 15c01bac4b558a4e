"""Decoupled clip and dynamic sampling: a wider bound above 1, groups that teach nothing replaced, a mean over tokens.

    A_i = (R_i - mean_g R) / (std_g R + 1e-4)
    L   = mean over tokens of -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A),  ε_high > ε_low

Groups whose rewards are all equal are replaced by other prompts' in at most `resample_rounds` rounds; those that remain are
left out of the update.

Source: arXiv:2503.14476, sections 3.1 to 3.3. Departs from it: resampling is bounded; no overlong reward shaping, since an
image's length is fixed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient


@algorithms.register("dapo")
def dapo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    resample_rounds: int = 2,
    filter: str = "drop_zero_variance",
    **common: Any,
) -> Algorithm:
    """DAPO: clip-higher, dynamic sampling, token mean (arXiv:2503.14476).

    Args:
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        resample_rounds: how often dull groups may be replaced.
        filter: which rollouts take part; by default those of groups that stayed dull do not.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import group_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clipped

    return policy_gradient(
        "dapo",
        group_advantages,
        partial(clipped, clip_low=clip_low, clip_high=clip_high),
        resample_rounds=resample_rounds,
        filter=filter,
        **common,
    )
