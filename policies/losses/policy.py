"""The policy-gradient loss: one function, into which each algorithm plugs its surrogate for a token."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from xomni_rl.policies.losses.common import (
    Aggregation,
    KLEstimator,
    aggregate,
    check_loss_inputs,
    kl_estimate,
    masked,
    ratio_metrics,
)
from xomni_rl.policies.losses.correction import Correction, importance_weights

Surrogate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(logprobs, old_logprobs, advantages, mask), all [N, T] and 0 where masked -> (loss of each token [N, T], metrics)."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    reference: Tensor | None = None,
    *,
    surrogate: Surrogate,
    aggregation: Aggregation = "token_mean",
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    sampler_logprobs: Tensor | None = None,
    correction: Correction = "none",
    correction_cap: float = 2.0,
    correction_floor: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy-gradient loss over image tokens.

    L = agg[ w·surrogate(logprobs, old, A) + β·KL(logprobs, reference) - γ·entropy ],  w = importance_weights(old, sampler)

    Args:
        logprobs: [N, T] float, nats; carries the gradient.
        old_logprobs: [N, T] float, nats; of the policy before this update; constant.
        advantages: [N] or [N, T] float, unitless; constant.
        mask: [N, T] bool; True = counted.
        reference: [N, T] float, nats, or None; the reference policy's; constant.
        surrogate: the algorithm's loss of a token, see `Surrogate` and `surrogates`.
        aggregation: agg, see `aggregate`.
        kl_coef: β, loss per nat, ≥ 0; needs `reference` if not 0.
        kl_estimator: see `kl_estimate`.
        entropy: [N, T] float, nats, with gradient, of the policy's distribution at each token; needed if entropy_coef is not 0.
        entropy_coef: γ, loss per nat; positive = more entropy is better.
        sampler_logprobs: [N, T] float, nats, or None; what the sampler said where that is not `old_logprobs`; constant.
        correction: how w corrects for a sampler that is not the trainer's policy, see `importance_weights`.
        correction_cap: C there, ≥ 1.
        correction_floor: c there, in [0, 1]; 0 = no lower bound.
    Returns: loss [] float; metrics, each [] float, detached, over counted tokens: the surrogate's own; those of
        `ratio_metrics`; kl_reference (nats per token) if `reference` is given; entropy (nats per token) if `entropy` is
        given; those of `importance_weights` with a correction.
    Raises: ValueError if shapes or dtypes differ, no token is counted, a knob is out of range, or a coefficient is not 0
        without what it needs.
    Source: arXiv:1707.06347, eq. 7 and 9, without its value term; KL: arXiv:2402.03300, eq. 3. Departs from them: the KL term
        carries no importance weight; KL and entropy are averaged in the same way as the surrogate.
    """
    optional = {"reference": reference, "entropy": entropy, "sampler_logprobs": sampler_logprobs}
    check_loss_inputs(mask, advantages, logprobs=logprobs, old_logprobs=old_logprobs, **optional)
    _check_knobs(kl_coef, reference, entropy_coef, entropy, correction, sampler_logprobs)
    current, old = masked(logprobs, mask), masked(old_logprobs.detach(), mask)
    per_token = advantages.detach() if advantages.dim() == 2 else advantages.detach().unsqueeze(1)
    loss_per_token, metrics = surrogate(current, old, masked(per_token.expand_as(current), mask), mask)
    metrics = metrics | ratio_metrics((current - old).detach(), mask)
    if correction != "none" and sampler_logprobs is not None:
        weights, about = importance_weights(
            old, masked(sampler_logprobs.detach(), mask), mask, correction, correction_cap, correction_floor
        )
        loss_per_token = weights * loss_per_token
        metrics |= about
    if reference is not None:
        kl = kl_estimate(current, masked(reference.detach(), mask), kl_estimator)
        metrics["kl_reference"] = aggregate(kl.detach(), mask, "token_mean")
        loss_per_token = loss_per_token + kl_coef * kl if kl_coef else loss_per_token
    if entropy is not None:
        metrics["entropy"] = aggregate(entropy.detach(), mask, "token_mean")
        loss_per_token = loss_per_token - entropy_coef * masked(entropy, mask) if entropy_coef else loss_per_token
    return aggregate(loss_per_token, mask, aggregation), metrics


def _check_knobs(
    kl_coef: float,
    reference: Tensor | None,
    entropy_coef: float,
    entropy: Tensor | None,
    correction: str,
    sampler_logprobs: Tensor | None,
) -> None:
    if kl_coef < 0.0:
        raise ValueError(f"kl_coef must be 0 or more, but is {kl_coef}")
    if kl_coef and reference is None:
        raise ValueError(f"kl_coef is {kl_coef}, but no reference log-probabilities were given")
    if entropy_coef and entropy is None:
        raise ValueError(f"entropy_coef is {entropy_coef}, but no entropy was given")
    if correction != "none" and sampler_logprobs is None:
        raise ValueError(f"correction is {correction!r}, but no sampler_logprobs were given")
