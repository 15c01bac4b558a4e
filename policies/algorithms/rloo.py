"""REINFORCE with a leave-one-out baseline: a rollout against the mean of the others of its prompt.

    A_i = R_i - mean over j ≠ i of R_j
    L   = mean over tokens of -A·logprob

The baseline does not depend on the rollout, so the gradient is unbiased. With several updates per rollout take
`surrogate: clipped`.

Source: arXiv:2402.14740. Departs from it: the loss is a mean over tokens instead of a sum over those of a rollout, which
changes the learning rate's unit.
"""

from __future__ import annotations

from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient, require_choice


@algorithms.register("rloo")
def rloo(*, surrogate: str = "reinforce", **common: Any) -> Algorithm:
    """RLOO: REINFORCE against the mean of the other rollouts (arXiv:2402.14740).

    Args:
        surrogate: reinforce, or clipped for several updates per rollout.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import rloo_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clipped, reinforce

    choices = {"reinforce": reinforce, "clipped": clipped}
    require_choice("surrogate", surrogate, choices)
    return policy_gradient(
        "rloo",
        rloo_advantages,
        choices[surrogate],
        **common,
    )
