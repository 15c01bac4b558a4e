"""Losses of pairs: the best and the worst rollout of a group, compared with each other instead of scored."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from xomni_rl.policies.losses.common import (
    KLEstimator,
    aggregate,
    check_loss_inputs,
    kl_estimate,
    masked,
    ratio_metrics,
)
from xomni_rl.policies.shapes import check_shapes


def dpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    reference: Tensor | None = None,
    *,
    group: Tensor | None = None,
    beta: float = 0.1,
    kl_estimator: KLEstimator = "k3",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Online direct preference optimisation: in each group the rollout of advantage +1 is preferred over that of -1.

    L = mean over pairs of -log σ(m),  m = β·(Δ_best - Δ_worst),  Δ = Σ_t (logprobs - reference) over a rollout's counted tokens

    Only the sign of an advantage matters, and rollouts of advantage 0, or without a counted token, take no part. A group that
    lacks a best or a worst rollout is left out.

    Args:
        logprobs: [N, T] float, nats; carries the gradient.
        old_logprobs: [N, T] float, nats; of the policy that sampled; for metrics only.
        advantages: [N] float: +1 best, -1 worst, 0 neither.
        mask: [N, T] bool; True = counted.
        reference: [N, T] float, nats; the reference policy's; constant. Must be given.
        group: [N] int; equal = rollouts of one prompt. Must be given.
        beta: β, loss per nat, > 0; smaller lets the policy move further from the reference.
        kl_estimator: of the metric kl_reference; see `kl_estimate`.
    Returns: loss [] float; metrics, each [] float, detached: preference_accuracy, in [0, 1], pairs with m > 0;
        preference_margin, nats, mean of m; over all counted tokens kl_reference (nats per token) and those of `ratio_metrics`.
    Raises: ValueError if shapes or dtypes differ, beta is out of range, reference or group is missing, no group has a pair, or
        a group has several best or several worst rollouts.
    Source: arXiv:2305.18290, eq. 7; pairs sampled by the policy itself: arXiv:2402.04792. Departs from the latter: the pair is
        the best and the worst of a group by reward, not two samples compared by a judge.
    """
    if reference is None or group is None:
        raise ValueError(f"dpo_loss needs {'reference log-probabilities' if reference is None else 'group'}, but got None")
    if not beta > 0.0:
        raise ValueError(f"beta must be more than 0, but is {beta}")
    check_shapes(advantages=(advantages, "N", "float"), group=(group, "N", "int"))
    check_loss_inputs(mask, advantages, logprobs=logprobs, old_logprobs=old_logprobs, reference=reference)
    current, old, anchor = (masked(each, mask) for each in (logprobs, old_logprobs.detach(), reference.detach()))
    margins = beta * _pair_differences((current - anchor).sum(dim=1), advantages.detach(), mask.any(dim=1), group)
    kl = kl_estimate(current.detach(), anchor, kl_estimator)
    return softplus(-margins).mean(), ratio_metrics((current - old).detach(), mask) | {
        "preference_accuracy": (margins.detach() > 0).float().mean(),
        "preference_margin": margins.detach().mean(),
        "kl_reference": aggregate(kl, mask, "token_mean"),
    }


def _pair_differences(scores: Tensor, advantages: Tensor, counted: Tensor, group: Tensor) -> Tensor:
    """Score of the best less that of the worst rollout, for each group that has both: [N], [N], [N], [N] -> [pairs]."""
    ids, index = torch.unique(group, return_inverse=True)
    sides = (advantages > 0) & counted, (advantages < 0) & counted
    counts = [torch.bincount(index[side], minlength=len(ids)) for side in sides]
    for name, count in zip(("best", "worst"), counts, strict=True):
        if (count > 1).any():
            several = int(count.argmax())
            raise ValueError(f"group {int(ids[several])} has {int(count[several])} {name} rollouts; a pair needs one")
    paired = (counts[0] == 1) & (counts[1] == 1)
    if not paired.any():
        raise ValueError(f"none of the {len(ids)} groups has both a best and a worst rollout (advantages +1 and -1)")
    signed = torch.where(sides[0], scores, 0.0) - torch.where(sides[1], scores, 0.0)
    return torch.zeros(len(ids), dtype=scores.dtype, device=scores.device).index_add(0, index, signed)[paired]
