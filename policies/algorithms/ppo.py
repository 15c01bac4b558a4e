"""Proximal policy optimisation with a critic: a token is judged against what the critic expected there.

    δ_t = r_t + γ V_{t+1} - V_t
    A_t = Σ_l (γλ)^l δ_{t+l},  then standardised over all tokens of the batch
    L   = mean over tokens of -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A)

The reward comes at the last token. The critic is a value head on the policy's own features (`policies/critic.py`), set by
`trainer.critic`. Works with one rollout per prompt.

Source: arXiv:1707.06347, eq. 7 and 11; arXiv:1506.02438. Departs from them: the critic's features carry no gradient; γ is 1;
advantages are standardised, as implementations do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from xomni_rl.policies.algorithms.base import Algorithm, algorithms, policy_gradient


@algorithms.register("ppo")
def ppo(*, gamma: float = 1.0, lam: float = 0.95, clip_low: float = 0.2, clip_high: float = 0.2, **common: Any) -> Algorithm:
    """PPO: generalised advantage estimation with a critic (arXiv:1707.06347).

    Args:
        gamma: discount per token, in [0, 1].
        lam: λ, in [0, 1]; 1 = Monte Carlo, 0 = one step.
        clip_low: how far below 1 the importance ratio may go, in [0, 1].
        clip_high: the same above 1.
        common: options that all policy-gradient algorithms share, see `policy_gradient`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import gae_advantages, gae_returns  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.losses.surrogates import clipped

    return policy_gradient(
        "ppo",
        partial(gae_advantages, gamma=gamma, lam=lam),
        partial(clipped, clip_low=clip_low, clip_high=clip_high),
        needs=frozenset({"values"}),
        returns=partial(gae_returns, gamma=gamma, lam=lam),
        least_group_size=1,
        **common,
    )
