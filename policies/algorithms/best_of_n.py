"""Supervised fine-tuning on the best of N: rejection sampling, what the paper compares RL with.

Each prompt's best rollout is imitated:  L = mean over its tokens of -logprob

A group whose rewards are all equal has no best and is left out.

Source: arXiv:2507.22058, section 4, where RL beats it; arXiv:2309.06657 for the method.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient


@algorithms.register("best_of_n")
def best_of_n(*, min_reward: float | None = None, filter: str = "best_of_group", **common: Any) -> Algorithm:
    """Best-of-N fine-tuning: imitate the best rollout of each group (rejection sampling).

    Args:
        min_reward: a best rollout below it is not imitated; None = any.
        filter: see `policy_gradient`; by default groups without a best rollout are left out.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import best_indicator_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import log_likelihood

    return policy_gradient(
        "best_of_n",
        partial(best_indicator_advantages, min_reward=min_reward),
        log_likelihood,
        filter=filter,
        **common,
    )
