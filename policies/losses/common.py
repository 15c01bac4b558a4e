"""What every policy loss shares: checks, masking, means over tokens, KL estimates, metrics."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from xomni_rl.policies.shapes import check_shapes

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]
KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy ‖ reference) from tokens sampled by the policy.

    With d = logprobs - reference:   k1 = d     k2 = d²/2     k3 = exp(-d) - 1 + d

    As values k1 and k3 are unbiased, k3 with less variance and never negative; k2 is biased. In a loss, though, the expected
    gradient of k1 is 0, that of k2 is the KL's own, and that of k3 is KL(reference ‖ policy)'s: use k1 in the reward, k2 or
    k3 in the loss.

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
    return masked(kl_estimate(logprobs.detach(), reference.detach(), estimator), mask).sum(dim=1)


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
    values = masked(values, mask)
    if aggregation == "token_mean":
        return values.sum() / counts.sum()
    if aggregation == "sequence_mean":
        return (values.sum(dim=1) / counts.clamp(min=1)).sum() / rows
    if aggregation == "constant_length":
        return values.sum() / (rows * mask.shape[1])
    raise ValueError(f"aggregation must be one of token_mean, sequence_mean, constant_length, but is {aggregation!r}")


def share(chosen: Tensor, mask: Tensor) -> Tensor:
    """Share of the counted tokens that are chosen, [] float32 in [0, 1], detached. chosen and mask are bool [N, T]."""
    return aggregate(chosen.float(), mask, "token_mean")


def mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the counted tokens of each rollout, [N, 1]; 0 for a rollout without one. values is float [N, T]."""
    return masked(values, mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def ratio_metrics(log_ratio: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How far the policy has moved from the one that sampled. log_ratio: [N, T] float, logprobs - old_logprobs, nats, detached.

    Returns: approx_kl (nats per token, k3 estimate of KL(old ‖ current)); ratio_max_deviation (largest |r - 1|).
    """
    return {
        "approx_kl": aggregate(torch.expm1(log_ratio) - log_ratio, mask, "token_mean"),
        "ratio_max_deviation": masked(torch.expm1(log_ratio).abs(), mask).max(),
    }


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with 0 where the mask is False. Before any arithmetic: 0 · NaN is NaN, in the loss and in the gradient alike."""
    return torch.where(mask, values, 0.0)


def check_loss_inputs(mask: Tensor, advantages: Tensor, **logprobs: Tensor | None) -> None:
    """Raises ValueError unless log-probabilities are float [N, T], mask bool [N, T] and advantages float [N] or [N, T]."""
    arrays: dict[str, tuple[Tensor, str, str]] = {
        name: (values, "N T", "float") for name, values in logprobs.items() if values is not None
    }
    arrays["advantages"] = (advantages, "N T" if advantages.dim() == 2 else "N", "float")
    arrays["mask"] = (mask, "N T", "bool")
    check_shapes(**arrays)
