"""Surrogates in which a token's loss depends on that token alone. Conventions: `xomni_rl.policies.losses.surrogates`."""

from __future__ import annotations

import torch
from torch import Tensor

from xomni_rl.policies.losses.common import aggregate, share


def clipped(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped ratio, with a bound of its own on each side, and a last bound on what a bad token may cost.

    l = -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A)
    and with dual_clip, for A < 0:  l = -max(min(r·A, clip(r, 1-ε_low, 1+ε_high)·A), c·A)

    Args:
        clip_low: ε_low, how far below 1 the ratio may go and still be rewarded, in [0, 1].
        clip_high: ε_high, the same above 1, ≥ 0.
        dual_clip: c, > 1, beyond which the ratio of a token with a negative advantage has no effect; None = no such bound.
    Returns: [N, T]; clip_fraction, in [0, 1]: tokens whose gradient a clip removed; dual_clip_fraction, with dual_clip: those
        of them for which it was the dual clip.
    Raises: ValueError for a bound out of range.
    Source: arXiv:1707.06347, eq. 7; two bounds: arXiv:2503.14476, eq. 10; dual clip: arXiv:1912.09729, dual-clip PPO (there
        c = 3), the same as TRL's `delta` (arXiv:2505.07291) where c ≥ 1+ε_high.
    """
    if dual_clip is not None and not dual_clip > 1.0:
        raise ValueError(f"dual_clip must be more than 1, but is {dual_clip}")
    ratio = (logprobs - old_logprobs).exp()
    loss, lost = pessimistic(ratio, advantages, clip_low, clip_high)
    if dual_clip is None:
        return loss, {"clip_fraction": share(lost, mask)}
    past = (ratio > dual_clip) & (advantages < 0)
    loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss, {"clip_fraction": share(lost | past, mask), "dual_clip_fraction": share(past, mask)}


def cispo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float = 1.0, clip_high: float = 4.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """CISPO: the ratio is clipped as a weight, so that no token loses its gradient.

    l = -sg[ clip(r, 1-ε_low, 1+ε_high) ]·A·logprobs

    Args:
        clip_low: ε_low, in [0, 1]; 1 = the weight has no lower bound.
        clip_high: ε_high, ≥ 0; the weight is at most 1+ε_high.
    Returns: [N, T]; clip_fraction, in [0, 1]: tokens whose weight the clip changed.
    Raises: ValueError for a bound out of range.
    Source: arXiv:2506.13585, eq. 4 and 5, averaged over all tokens. It uses no lower bound and names no upper one; the largest
        weight of 5 is arXiv:2510.13786's (TRL's `epsilon_high` is that weight itself, here 1+ε_high).
    """
    check_clip(clip_low, clip_high)
    ratio = (logprobs.detach() - old_logprobs).exp()
    weight = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    touched = (ratio < 1.0 - clip_low) | (ratio > 1.0 + clip_high)
    return -weight * advantages * logprobs, {"clip_fraction": share(touched, mask)}


def sapo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
) -> tuple[Tensor, dict[str, Tensor]]:
    """SAPO: a smooth gate in place of the clip. The further a ratio is from 1, the less its token pulls.

    l = -(4/τ)·σ(τ·(r-1))·A,  τ = τ_positive for A > 0, else τ_negative,  so that dl/dlogprobs = -4p(1-p)·r·A, p = σ(τ·(r-1))

    Args:
        temperature_positive: τ_positive, > 0; the larger, the narrower the gate.
        temperature_negative: τ_negative, > 0; larger than τ_positive, because a negative advantage raises all other tokens.
    Returns: [N, T]; gate, in [0, 1]: mean of 4p(1-p), what the gate leaves of the gradient; 1 where all ratios are 1.
    Raises: ValueError for a temperature out of range.
    Source: arXiv:2511.20347, section 3, averaged over the tokens of each rollout and then over rollouts.
    """
    for name, value in (("temperature_positive", temperature_positive), ("temperature_negative", temperature_negative)):
        if not value > 0.0:
            raise ValueError(f"{name} must be more than 0, but is {value}")
    positive, negative = logprobs.new_tensor(temperature_positive), logprobs.new_tensor(temperature_negative)
    temperature = torch.where(advantages > 0, positive, negative)
    opened = torch.sigmoid(temperature * torch.expm1(logprobs - old_logprobs))
    gate = (4.0 * opened * (1.0 - opened)).detach()
    return -4.0 / temperature * opened * advantages, {"gate": aggregate(gate, mask, "token_mean")}


def reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Plain policy gradient, exact for the first update after sampling alone: what was sampled earlier is not corrected for.

    l = -A·logprobs

    Returns: [N, T]; no metrics of its own.
    Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992.
    """
    return -advantages * logprobs, {}


def log_likelihood(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Supervised fine-tuning on what was better than its baseline; after a best-of-group filter, on the best of each group.

    l = -logprobs·1[A > 0]: how much better does not matter. Other tokens cost nothing, but do count in the mean.

    Returns: [N, T]; learned_fraction, in [0, 1]: tokens with A > 0; nll, nats per token, over these, if there are any.
    Source: rejection sampling fine-tuning, as in arXiv:2304.06767 (RAFT) and arXiv:2307.09288, section 3.2.3.
    """
    learned = mask & (advantages > 0)
    loss = torch.where(learned, -logprobs, 0.0)
    metrics = {"learned_fraction": share(learned, mask)}
    if learned.any():
        metrics["nll"] = aggregate(loss.detach(), learned, "token_mean")
    return loss, metrics


def pessimistic(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """-min(r·A, clip(r, 1-ε_low, 1+ε_high)·A), and where the clip removed the gradient: float [N, T], bool [N, T].

    Raises: ValueError for a bound out of range.
    """
    check_clip(clip_low, clip_high)
    limited = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    lost = ((ratio < 1.0 - clip_low) & (advantages < 0)) | ((ratio > 1.0 + clip_high) & (advantages > 0))
    return -torch.minimum(ratio * advantages, limited * advantages), lost


def check_clip(clip_low: float, clip_high: float) -> None:
    """Raises ValueError unless clip_low is in [0, 1] and clip_high is 0 or more."""
    if not 0.0 <= clip_low <= 1.0:
        raise ValueError(f"clip_low must be in [0, 1], but is {clip_low}")
    if not clip_high >= 0.0:
        raise ValueError(f"clip_high must be 0 or more, but is {clip_high}")
