"""Online direct preference optimisation: the best rollout of a prompt is preferred over its worst.

    Δ = Σ_t (logprob - reference)
    L = mean over prompts of -log σ(β·(Δ_best - Δ_worst))

A group whose rewards are all equal makes no pair and is left out. The options that policy-gradient algorithms share are not
its: the pairs are the filter, and β is the weight of the reference.

Source: arXiv:2305.18290, eq. 7; pairs from the policy itself: arXiv:2402.04792. Departs from the latter: the pair is chosen by
reward among a group's rollouts.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from xomni_rl.policies.algorithms.base import Algorithm, AlgorithmError, algorithms, chosen_reference, require_choice

if TYPE_CHECKING:
    from xomni_rl.policies.algorithms.base import ReferenceKind
    from xomni_rl.policies.losses import KLEstimator


@algorithms.register("dpo")
def dpo(
    *,
    beta: float = 0.1,
    kl_estimator: KLEstimator = "k3",
    reference: ReferenceKind = "frozen",
    reference_decay: float = 0.99,
    reference_every: int = 100,
) -> Algorithm:
    """Online DPO on the best and worst rollout of each group (arXiv:2305.18290).

    Args:
        beta: β, loss per nat, above 0.
        kl_estimator: k1, k2 or k3; of the metric kl_reference alone.
        reference, reference_decay, reference_every: what Δ is measured to: frozen, ema or reset; see `Reference`.
    Raises: AlgorithmError for a value out of range.
    """
    from xomni_rl.policies.advantages import preference_advantages  # here, so that listing algorithms needs no torch
    from xomni_rl.policies.filters import best_and_worst
    from xomni_rl.policies.losses import dpo_loss

    require_choice("kl_estimator", kl_estimator, ("k1", "k2", "k3"))
    if not beta > 0:
        raise AlgorithmError(f"algorithm.options.beta must be above 0, but is {beta!r}")
    return Algorithm(
        name="dpo",
        advantage=preference_advantages,
        loss=partial(dpo_loss, beta=beta, kl_estimator=kl_estimator),
        filter=best_and_worst,
        needs=frozenset({"group"}),
        reference=chosen_reference(beta, reference, reference_decay, reference_every),
        least_group_size=2,
    )
