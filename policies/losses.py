"""Policy losses over image tokens: plain functions on tensors, no model and no configuration inside.

Conventions: N rollouts, T image tokens, log-probabilities in nats; `mask` is True where a token counts. A token that
does not count changes neither the loss, nor a metric, nor a gradient, whatever it holds, NaN included.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from xomni_rl.policies.shapes import check_shapes

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]
KLEstimator = Literal["k1", "k2", "k3"]


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    reference: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregation: Aggregation = "token_mean",
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped policy-gradient loss over image tokens, with an optional KL penalty to a reference policy.

    L = agg[ -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A) + β·KL(logprobs, reference) ],  r = exp(logprobs - old_logprobs)

    Args:
        logprobs: [N, T] float, nats; carries the gradient.
        old_logprobs: [N, T] float, nats; the sampler's; constant.
        advantages: [N] or [N, T] float, unitless; constant.
        mask: [N, T] bool; True = counted.
        reference: [N, T] float, nats, or None; the frozen reference's; constant.
        clip_low: ε_low, how far below 1 the ratio may go and still be rewarded, in [0, 1].
        clip_high: ε_high, the same above 1, ≥ 0.
        aggregation: agg, see `aggregate`.
        kl_coef: β, loss per nat, ≥ 0; needs `reference` if not 0.
        kl_estimator: see `kl_estimate`.
    Returns: loss [] float; metrics, each [] float, detached, over counted tokens: approx_kl (nats, estimate of
        KL(old ‖ current)), clip_fraction (in [0, 1], tokens whose gradient the clip removed), ratio_max_deviation
        (largest |r - 1|), and kl_reference (nats per token) only if `reference` is given.
    Raises: ValueError if shapes or dtypes differ, no token is counted, a knob is out of range, or kl_coef is not 0
        without a reference.
    Source: arXiv:1707.06347, eq. 7; arXiv:2402.03300, eq. 3; two-sided clip: arXiv:2503.14476, eq. 10. Departs from
        them: no value or entropy term; the KL term carries no importance weight.
    """
    _check_loss_inputs(logprobs, old_logprobs, advantages, mask, reference)
    _check_knobs(clip_low, clip_high, kl_coef, reference)
    # Masked values are replaced before any arithmetic: 0 · NaN is NaN, in the loss and in the gradient alike.
    log_ratio = _masked(logprobs - old_logprobs.detach(), mask)
    per_token = advantages.detach() if advantages.dim() == 2 else advantages.detach().unsqueeze(1)
    per_token = _masked(per_token.expand_as(log_ratio), mask)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss_per_token = -torch.minimum(ratio * per_token, clipped * per_token)

    metrics = _ratio_metrics(log_ratio.detach(), per_token, mask, clip_low, clip_high)
    if reference is not None:
        safe = torch.where(mask, logprobs, 0.0), torch.where(mask, reference.detach(), 0.0)
        kl = kl_estimate(*safe, kl_estimator)
        metrics["kl_reference"] = aggregate(kl.detach(), mask, "token_mean")
        if kl_coef:
            loss_per_token = loss_per_token + kl_coef * kl
    return aggregate(loss_per_token, mask, aggregation), metrics


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy ‖ reference) from tokens sampled by the policy.

    With d = logprobs - reference:   k1 = d     k2 = d²/2     k3 = exp(-d) - 1 + d

    k1 and k3 are unbiased as values, k3 with less variance and never negative; k2 is biased but its gradient is that
    of the true KL. In a loss, the expected gradient of k1 is 0: use k1 in the reward, k2 or k3 in the loss.

    Args:
        logprobs: [N, T] float, nats.
        reference: [N, T] float, nats.
        estimator: "k1", "k2" or "k3".
    Returns: [N, T] float, nats.
    Raises: ValueError if shapes or dtypes differ or the estimator is unknown.
    Source: J. Schulman, "Approximating KL divergence", 2020, http://joschu.net/blog/kl-approx.html
    """
    check_shapes(logprobs=(logprobs, "N T", "float"), reference=(reference, "N T", "float"))
    difference = logprobs - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"kl_estimator must be one of k1, k2, k3, but is {estimator!r}")


def sequence_kl(logprobs: Tensor, reference: Tensor, mask: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """KL of each whole rollout: the sum of its counted tokens' estimates, for `rewards_with_kl`.

    KL_i = Σ_t mask_it · kl_estimate_it

    Args:
        logprobs: [N, T] float, nats; the policy that sampled.
        reference: [N, T] float, nats.
        mask: [N, T] bool; True = counted.
        estimator: as in `kl_estimate`.
    Returns: [N] float, nats, detached.
    Raises: ValueError if shapes or dtypes differ or the estimator is unknown.
    Source: arXiv:2009.01325, section 3.4.
    """
    check_shapes(logprobs=(logprobs, "N T", "float"), reference=(reference, "N T", "float"), mask=(mask, "N T", "bool"))
    return _masked(kl_estimate(logprobs.detach(), reference.detach(), estimator), mask).sum(dim=1)


def aggregate(values: Tensor, mask: Tensor, aggregation: Aggregation) -> Tensor:
    """One number from per-token values.

    token_mean       Σ_it m v / Σ_it m               every counted token weighs the same
    sequence_mean    mean_i [ Σ_t m v / Σ_t m ]      every rollout weighs the same
    constant_length  Σ_it m v / (n · T)              every token weighs the same, whatever the lengths of the batch
    where n and mean_i go over the rollouts with a counted token.

    Args:
        values: [N, T] float.
        mask: [N, T] bool; True = counted.
        aggregation: "token_mean", "sequence_mean" or "constant_length".
    Returns: [] float.
    Raises: ValueError if shapes or dtypes differ, no token is counted, or the aggregation is unknown.
    Source: token_mean: arXiv:2503.14476, eq. 8; sequence_mean: arXiv:2402.03300, eq. 3; constant_length:
        arXiv:2503.20783, listing 1.
    """
    check_shapes(values=(values, "N T", "float"), mask=(mask, "N T", "bool"))
    counts = mask.sum(dim=1)
    rows = (counts > 0).sum()
    if not rows:
        raise ValueError(f"no token is counted: mask of shape {tuple(mask.shape)} is False everywhere")
    values = _masked(values, mask)
    if aggregation == "token_mean":
        return values.sum() / counts.sum()
    if aggregation == "sequence_mean":
        return (values.sum(dim=1) / counts.clamp(min=1)).sum() / rows
    if aggregation == "constant_length":
        return values.sum() / (rows * mask.shape[1])
    raise ValueError(f"aggregation must be one of token_mean, sequence_mean, constant_length, but is {aggregation!r}")


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0)


def _ratio_metrics(log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float) -> dict[str, Tensor]:
    """Diagnostics of the importance ratio. log_ratio, advantages and mask are [N, T]; log_ratio is detached."""
    ratio = log_ratio.exp()
    lost = ((ratio < 1.0 - clip_low) & (advantages < 0)) | ((ratio > 1.0 + clip_high) & (advantages > 0))
    return {
        "approx_kl": aggregate(torch.expm1(log_ratio) - log_ratio, mask, "token_mean"),
        "clip_fraction": aggregate(lost.to(log_ratio.dtype), mask, "token_mean"),
        "ratio_max_deviation": _masked((ratio - 1.0).abs(), mask).max(),
    }


def _check_loss_inputs(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, reference: Tensor | None
) -> None:
    arrays: dict[str, tuple[Tensor, str, str]] = {
        "logprobs": (logprobs, "N T", "float"),
        "old_logprobs": (old_logprobs, "N T", "float"),
        "advantages": (advantages, "N T" if advantages.dim() == 2 else "N", "float"),
        "mask": (mask, "N T", "bool"),
    }
    if reference is not None:
        arrays["reference"] = (reference, "N T", "float")
    check_shapes(**arrays)


def _check_knobs(clip_low: float, clip_high: float, kl_coef: float, reference: Tensor | None) -> None:
    if not 0.0 <= clip_low <= 1.0:
        raise ValueError(f"clip_low must be in [0, 1], but is {clip_low}")
    if clip_high < 0.0:
        raise ValueError(f"clip_high must be 0 or more, but is {clip_high}")
    if kl_coef < 0.0:
        raise ValueError(f"kl_coef must be 0 or more, but is {kl_coef}")
    if kl_coef and reference is None:
        raise ValueError(f"kl_coef is {kl_coef}, but no reference log-probabilities were given")
