"""Pass@k training: rewarded is the best of k images of a prompt, so that exploring pays.

    ρ       = 1 - C(w, k) / C(n, k),  σ = sqrt(ρ (1 - ρ))
    A_right = (1 - ρ) / σ
    A_wrong = (1 - ρ - C(w-1, k-1) / C(n-1, k-1)) / σ
    L       = mean over tokens of -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A)

n rollouts of a prompt, w of them wrong (a reward below `threshold`), C(a, b) ways to choose b of a. A_i is the mean, over all
k-subsets of the group that hold rollout i, of the standardised reward of the subset's best, in closed form.

Source: arXiv:2508.10751, eq. 14 and 15. Departs from it: graded rewards are cut at `threshold`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_at_least


@algorithms.register("pass_at_k")
def pass_at_k(
    *, k: int = 4, threshold: float = 0.99, clip_low: float = 0.2, clip_high: float = 0.2, **common: Any
) -> Algorithm:
    """Pass@k: advantages of the best of k, in closed form (arXiv:2508.10751).

    Args:
        k: of how many images the best counts; the group must be larger.
        threshold: reward from which an image passes.
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import pass_at_k_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clipped

    require_at_least("k", k, 1)
    return policy_gradient(
        "pass_at_k",
        partial(pass_at_k_advantages, k=k, threshold=threshold),
        partial(clipped, clip_low=clip_low, clip_high=clip_high),
        least_group_size=k + 1,
        **common,
    )
