"""Importance weights for a sampler that is not quite the policy being trained: other kernels, precision or weights."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from xomni_rl.policies.losses.common import aggregate, masked, share
from xomni_rl.policies.shapes import check_shapes

Correction = Literal["none", "truncated", "masked", "sequence_truncated", "sequence_masked"]
CORRECTIONS: tuple[Correction, ...] = ("none", "truncated", "masked", "sequence_truncated", "sequence_masked")


def importance_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, correction: Correction, cap: float = 2.0, floor: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights of tokens drawn by a sampler other than the policy they are taken to come from.

    w = clip(ρ, c, C)          truncated: bounded variance, biased where a bound bites
    w = ρ·1[c ≤ ρ ≤ C]         masked: tokens on which the two disagree that much are left out
    with ρ = exp(old - sampler) of the token, or, with sequence_…, of the whole rollout (the product over its counted tokens:
    one weight for all of them)

    Args:
        old_logprobs: [N, T] float, nats; the trainer's, before this update.
        sampler_logprobs: [N, T] float, nats; what the sampler drew under.
        mask: [N, T] bool; True = counted.
        correction: truncated, masked, sequence_truncated or sequence_masked.
        cap: C, ≥ 1.
        floor: c, in [0, 1]; 0 = no lower bound.
    Returns: [N, T] float, constant; metrics sampler_kl (nats per token, k3 estimate of KL(sampler ‖ trainer)) and
        correction_share (tokens whose weight a bound changed, in [0, 1]).
    Raises: ValueError if shapes or dtypes differ, the correction is unknown, or a bound is out of range.
    Source: truncation: E. L. Ionides, "Truncated importance sampling", Journal of Computational and Graphical Statistics 17(2),
        2008; between sampler and trainer: F. Yao et al., "Your efficient RL framework secretly brings you off-policy RL
        training", 2025, https://fengyao.notion.site/off-policy-rl; masking: arXiv:2510.18855 (IcePop). The four are TRL 1.16's
        token_truncate, token_mask, sequence_truncate and sequence_mask.
    """
    check_shapes(
        old_logprobs=(old_logprobs, "N T", "float"),
        sampler_logprobs=(sampler_logprobs, "N T", "float"),
        mask=(mask, "N T", "bool"),
    )
    if correction not in CORRECTIONS[1:]:
        raise ValueError(f"correction must be one of {', '.join(CORRECTIONS[1:])}, but is {correction!r}")
    if not cap >= 1.0:
        raise ValueError(f"correction_cap must be 1 or more, but is {cap}")
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"correction_floor must be in [0, 1], but is {floor}")
    log_ratio = masked(old_logprobs.detach() - sampler_logprobs.detach(), mask)
    per_sequence = correction.startswith("sequence_")
    ratio = (log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio) if per_sequence else log_ratio).exp()
    outside = (ratio > cap) | (ratio < floor)
    weights = ratio.clamp(floor, cap) if correction.endswith("truncated") else torch.where(outside, 0.0, ratio)
    return weights, {
        "sampler_kl": aggregate(torch.expm1(log_ratio) - log_ratio, mask, "token_mean"),
        "correction_share": share(outside, mask),
    }
