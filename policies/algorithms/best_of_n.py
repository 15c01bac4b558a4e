"""Supervised fine-tuning on the best of N: rejection sampling, what the paper compares RL with.

    A_i = 1 for the best rollout of each group, 0 for the others
    L   = mean over the best rollouts' tokens of -logprob

A rollout's reward only chooses: how much better the best is does not matter.

Source: arXiv:2507.22058, section 4, where RL beats it; arXiv:2304.06767 for the method. Departs from the latter: a group whose
rewards are all equal has no best and is left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient


@algorithms.register("best_of_n")
def best_of_n(*, min_reward: float | None = None, filter: str = "best_of_group", **common: Any) -> Algorithm:
    """Best-of-N fine-tuning: imitate the best rollout of each group (rejection sampling).

    Args:
        min_reward: a best rollout below it is not imitated; None = any that is better than the worst.
        filter: which rollouts take part; by default the best of each group alone.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import best_indicator_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import log_likelihood

    if min_reward is not None and filter == "best_of_group":
        common = {**common, "filter_options": {"min_reward": min_reward}}
    return policy_gradient(
        "best_of_n",
        partial(best_indicator_advantages, min_reward=min_reward),
        log_likelihood,
        filter=filter,
        **common,
    )
