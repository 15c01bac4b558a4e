"""On-policy optimisation with the baseline of least variance.

    A_i = R_i - Σ_j l_j R_j / Σ_j l_j    over the group, l = length
    L   = mean over tokens of -A·logprob

Images of one size have one length, so the baseline is the group's mean. Its other half is to be strictly on policy: one update
per rollout, which is `trainer.epochs=1 trainer.minibatches=1`.

Source: arXiv:2505.23585. Departs from it: the loss is a mean over tokens.
"""

from __future__ import annotations

from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient


@algorithms.register("opo")
def opo(**common: Any) -> Algorithm:
    """OPO: exact on-policy updates with the optimal baseline (arXiv:2505.23585).

    Args:
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import opo_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import reinforce

    return policy_gradient(
        "opo",
        opo_advantages,
        reinforce,
        **common,
    )
