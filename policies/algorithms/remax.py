"""ReMax: a rollout against the greedy image of its prompt.

    A_i = R_i - R_greedy
    L   = mean over tokens of -A·logprob

Costs one more image per prompt, drawn by taking the likeliest token each time. Works with one rollout per prompt. Greedy images
are scored in a batch of their own, so it needs rewards as scored: `reward.normalisation=none`.

Source: arXiv:2310.10505. Departs from it: the loss is a mean over tokens; no KL in the reward by default.
"""

from __future__ import annotations

from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient


@algorithms.register("remax")
def remax(**common: Any) -> Algorithm:
    """ReMax: the greedy image's reward as baseline (arXiv:2310.10505).

    Args:
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import remax_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import reinforce

    return policy_gradient(
        "remax",
        remax_advantages,
        reinforce,
        needs=frozenset({"greedy"}),
        least_group_size=1,
        **common,
    )
