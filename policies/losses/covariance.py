"""Surrogates that hold back the few tokens whose log-probability and advantage rise together: they use up the entropy.

Conventions: `xomni_rl.policies.losses.surrogates`. Covariances are over the counted tokens of the call, so of one micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xomni_rl.policies.losses.common import aggregate, masked, share
from xomni_rl.policies.losses.token_surrogates import pessimistic


def clip_cov(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    fraction: float = 2e-4,
    covariance_low: float = 1.0,
    covariance_high: float = 5.0,
    clip_low: float = 1.0,
    clip_high: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clip-Cov: a few tokens, drawn from those of high covariance, take no part in the update.

    l_t = 0 for t in I, and -min(r·A, clip(r, 1-ε_low, 1+ε_high)·A) otherwise
    Cov_t = (logprobs_t - mean logprobs)·(A_t - mean A), means over counted tokens
    I = max(1, ⌊k·n⌋) of the n counted tokens, drawn evenly from those with ω_low ≤ Cov_t ≤ ω_high and a gradient to lose;
    all of these if there are fewer

    The draw is a hash of each token's old log-probability, advantage and the seed: it looks random, but depends neither on a
    generator's state nor on the order of the rollouts, so that a run that goes on makes the same choices.

    Args:
        fraction: k, in (0, 1].
        covariance_low: ω_low, nats.
        covariance_high: ω_high, nats, ≥ ω_low.
        clip_low: ε_low, in [0, 1].
        clip_high: ε_high, ≥ 0.
        seed: another seed, another draw.
    Returns: [N, T]; clip_fraction, in [0, 1]: tokens whose gradient the ratio's clip removed; covariance_fraction, in [0, 1]:
        tokens in I; covariance, nats: mean of Cov_t.
    Raises: ValueError for a knob out of range.
    Source: arXiv:2505.22617, section 4.2 (Clip-Cov), with k, ω_low and ω_high of its experiments. Departs from it, as its
        authors' code does: the ratio is clipped too, with ε = 1 on both sides; at least one token is drawn.
    """
    _check_fraction(fraction)
    if not covariance_low <= covariance_high:
        raise ValueError(f"covariance_high must be {covariance_low} (covariance_low) or more, but is {covariance_high}")
    loss, lost = pessimistic((logprobs - old_logprobs).exp(), advantages, clip_low, clip_high)
    covariance = token_covariance(logprobs.detach(), advantages, mask)
    candidates = mask & ~lost & (covariance >= covariance_low) & (covariance <= covariance_high)
    order = torch.where(candidates, _draws(old_logprobs, advantages, seed), 1 << 32)
    held = candidates & _first(order, _count(fraction, mask))
    return torch.where(held, 0.0, loss), {"clip_fraction": share(lost, mask)} | _metrics(covariance, held, mask)


def kl_cov(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    fraction: float = 2e-3,
    coef: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """KL-Cov: the tokens of highest covariance pay for moving away from the policy that sampled them.

    l_t = -r·A + β·|logprobs - old_logprobs| for t in I, and -r·A otherwise
    I = the max(1, ⌊k·n⌋) of the n counted tokens with the highest Cov_t, as in `clip_cov`

    Args:
        fraction: k, in (0, 1].
        coef: β, loss per nat, ≥ 0.
    Returns: [N, T]; covariance_fraction, in [0, 1]: tokens in I; covariance, nats: mean of Cov_t.
    Raises: ValueError for a knob out of range.
    Source: arXiv:2505.22617, section 4.2 (KL-Cov), k and β of its 7B model. Its KL(old ‖ current) is estimated by the absolute
        log-ratio, as in its authors' code. Departs from it as that does: at least one token is chosen.
    """
    _check_fraction(fraction)
    if not coef >= 0.0:
        raise ValueError(f"coef must be 0 or more, but is {coef}")
    log_ratio = logprobs - old_logprobs
    covariance = token_covariance(logprobs.detach(), advantages, mask)
    held = mask & _first(torch.where(mask, -covariance, torch.inf), _count(fraction, mask))
    loss = torch.where(held, coef * log_ratio.abs(), 0.0) - log_ratio.exp() * advantages
    return loss, _metrics(covariance, held, mask)


def token_covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Each counted token's part of the covariance between log-probability and advantage, [N, T], nats; 0 where masked."""
    centred = [each - aggregate(each, mask, "token_mean") for each in (logprobs, advantages)]
    return masked(centred[0] * centred[1], mask)


def _metrics(covariance: Tensor, held: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"covariance_fraction": share(held, mask), "covariance": aggregate(covariance, mask, "token_mean")}


def _count(fraction: float, mask: Tensor) -> int:
    return max(1, int(fraction * int(mask.sum())))


def _first(order: Tensor, count: int) -> Tensor:
    """Where the `count` smallest values of [N, T] are, bool [N, T]."""
    chosen = torch.zeros_like(order, dtype=torch.bool).flatten()
    chosen[order.flatten().topk(count, largest=False).indices] = True
    return chosen.view_as(order)


def _draws(old_logprobs: Tensor, advantages: Tensor, seed: int) -> Tensor:
    """A number in [0, 2^32) for each token, from its own numbers and the seed alone, [N, T] int64."""
    bits = [each.float().contiguous().view(torch.int32).long() & 0xFFFFFFFF for each in (old_logprobs, advantages)]
    return _hash(_hash(bits[0] ^ _hash(bits[1])) ^ (seed & 0xFFFFFFFF))


def _hash(values: Tensor) -> Tensor:
    """32 mixed bits of each value in [0, 2^32), int64, by xor-shift and multiply; the factor lets products fit into 63 bits."""
    for _ in range(2):
        values = ((values ^ (values >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return values ^ (values >> 16)


def _check_fraction(fraction: float) -> None:
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be more than 0 and at most 1, but is {fraction}")
