"""Surrogates with one ratio for a whole rollout. Conventions: `xomni_rl.policies.losses.surrogates`.

The papers average them over the tokens of a rollout and then over rollouts: aggregation `sequence_mean`. With another one,
longer rollouts weigh more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xomni_rl.policies.losses.common import mean_over_tokens, share
from xomni_rl.policies.losses.token_surrogates import pessimistic


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> tuple[Tensor, dict[str, Tensor]]:
    """GSPO: a rollout is clipped as a whole, by the length-normalised ratio of its probability.

    l_t = -min(s·A_t, clip(s, 1-ε_low, 1+ε_high)·A_t),  s = exp( mean_t (logprobs - old_logprobs) ) of the rollout

    Args:
        clip_low: ε_low, in [0, 1]; far smaller than PPO's, because s is an average over many tokens.
        clip_high: ε_high, ≥ 0.
    Returns: [N, T]; clip_fraction, in [0, 1]: tokens of rollouts whose gradient the clip removed.
    Raises: ValueError for a bound out of range.
    Source: arXiv:2507.18071, eq. 5 and 7, bounds of section 5.1.
    """
    ratio = mean_over_tokens(logprobs - old_logprobs, mask).exp().expand_as(logprobs)
    loss, lost = pessimistic(ratio, advantages, clip_low, clip_high)
    return loss, {"clip_fraction": share(lost, mask)}


def gspo_token(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> tuple[Tensor, dict[str, Tensor]]:
    """GSPO-token: GSPO's ratio as a value, the token's own as a gradient, so that advantages may differ from token to token.

    l_t = -min(s_t·A_t, clip(s_t, 1-ε_low, 1+ε_high)·A_t),  s_t = sg[s]·exp(logprobs_t)/sg[exp(logprobs_t)],  s as in `gspo`

    With one advantage for the whole rollout, and `sequence_mean`, loss and gradient are those of `gspo`.

    Args:
        clip_low: ε_low, in [0, 1].
        clip_high: ε_high, ≥ 0.
    Returns: [N, T]; clip_fraction, in [0, 1]: tokens whose gradient the clip removed.
    Raises: ValueError for a bound out of range.
    Source: arXiv:2507.18071, eq. 13 and 14.
    """
    mean = mean_over_tokens(logprobs.detach() - old_logprobs, mask)
    ratio = (mean + (logprobs - logprobs.detach())).exp()
    loss, lost = pessimistic(ratio, advantages, clip_low, clip_high)
    return loss, {"clip_fraction": share(lost, mask)}


def gmpo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float = 0.4, clip_high: float = 0.4
) -> tuple[Tensor, dict[str, Tensor]]:
    """GMPO: the geometric mean of the tokens' ratios, each clipped first; one odd token moves it little.

    l_t = -A_t·exp( mean_t c_t ),  with d = logprobs - old_logprobs of a token,
    c = min(d, clip(d, -ε_low, ε_high)) for A > 0,  c = max(d, clip(d, -ε_low, ε_high)) otherwise

    Args:
        clip_low: ε_low, nats, ≥ 0: the ratio of a token with A ≤ 0 stops at exp(-ε_low).
        clip_high: ε_high, nats, ≥ 0: the ratio of a token with A > 0 stops at exp(ε_high).
    Returns: [N, T]; clip_fraction, in [0, 1]: tokens whose own gradient the clip removed.
    Raises: ValueError for a bound out of range.
    Source: arXiv:2507.20673, objective J_GMPO, bounds (e^-0.4, e^0.4). Departs from it: advantages may differ from token to
        token; each then chooses the side of its own clip.
    """
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not value >= 0.0:
            raise ValueError(f"{name} must be 0 or more, but is {value}")
    log_ratio = logprobs - old_logprobs
    limited = log_ratio.clamp(-clip_low, clip_high)
    good = advantages > 0
    kept = torch.where(good, torch.minimum(log_ratio, limited), torch.maximum(log_ratio, limited))
    lost = ((log_ratio > clip_high) & good) | ((log_ratio < -clip_low) & (advantages < 0))
    return -mean_over_tokens(kept, mask).exp() * advantages, {"clip_fraction": share(lost, mask)}
