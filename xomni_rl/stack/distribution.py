"""The distribution that image tokens are drawn from: temperature, truncation and guidance, for sampling and for scoring."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """How image tokens are drawn.

    Attributes:
        temperature: > 0; divides the logits.
        top_k: keep the k likeliest tokens; 0 = all.
        top_p: keep the smallest set of tokens with at least this probability, in (0, 1].
        min_p: drop tokens below this share of the likeliest one's probability, in [0, 1).
        cfg_scale: classifier-free guidance; 1 = none. Logits become negative + scale · (conditional − negative).

    Raises: ValueError naming the value that is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    cfg_scale: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "temperature must be above 0": self.temperature > 0,
            "top_k must be at least 0 (0 = all)": self.top_k >= 0,
            "top_p must be in (0, 1]": 0 < self.top_p <= 1,
            "min_p must be in [0, 1)": 0 <= self.min_p < 1,
            "cfg_scale must be at least 0 (1 = no guidance)": self.cfg_scale >= 0,
        }
        for rule, holds in checks.items():
            if not holds:
                raise ValueError(f"sampling: {rule}, not {getattr(self, rule.split()[0])}")

    @property
    def guided(self) -> bool:
        return self.cfg_scale != 1.0

    @property
    def truncated(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


def guide(conditional: Tensor, negative: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance on logits [..., V]. Source: arXiv:2207.12598, for autoregressive models arXiv:2306.17806."""
    if conditional.shape != negative.shape:
        raise ValueError(f"conditional {tuple(conditional.shape)} and negative {tuple(negative.shape)} logits differ")
    return negative + cfg_scale * (conditional - negative)


def sampling_logprobs(logits: Tensor, sampling: SamplingConfig, chosen: Tensor | None = None) -> Tensor:
    """Log-probabilities of the distribution actually sampled from.

    Temperature first, then top-k, top-p and min-p in this order, each on what the one before left, as transformers does.

    Args:
        logits: [..., V] float.
        sampling: its `cfg_scale` is not looked at; see `guide`.
        chosen: [...] int64; tokens that stay in the support whatever the truncation says. A token drawn under earlier weights
            may have left the support since; without this its log-probability would be −inf and its gradient undefined.
    Returns: [..., V] float32 nats; −inf outside the support.
    """
    scores = logits.float()
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    if sampling.truncated:
        keep = _support(scores.detach(), sampling)
        if chosen is not None:
            keep = keep.scatter(-1, chosen[..., None], True)
        scores = scores.masked_fill(~keep, -torch.inf)
    return torch.log_softmax(scores, -1)


def _support(scores: Tensor, sampling: SamplingConfig) -> Tensor:
    """Which tokens truncation keeps: [..., V] bool, at least one per row."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    if 0 < sampling.top_k < scores.shape[-1]:
        keep &= scores >= scores.topk(sampling.top_k, dim=-1).values[..., -1:]
    if sampling.top_p < 1.0:
        p, order = scores.masked_fill(~keep, -torch.inf).softmax(-1).sort(descending=True, dim=-1)
        nucleus = (p.cumsum(-1) - p) < sampling.top_p
        keep &= torch.zeros_like(keep).scatter(-1, order, nucleus)
    if sampling.min_p > 0.0:
        p = scores.masked_fill(~keep, -torch.inf).softmax(-1)
        keep &= p >= sampling.min_p * p.amax(-1, keepdim=True)
    return keep


def entropy(logprobs: Tensor) -> Tensor:
    """Entropy in nats of log-probabilities [..., V] (−inf allowed). Returns [...]."""
    p = logprobs.exp()
    return -(p * logprobs.masked_fill(p == 0, 0.0)).sum(-1)


def draw_tokens(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """Draws a token a row by inverting the cumulative distribution, so that one uniform number decides one token.

    Args:
        logprobs: [N, V] float, nats.
        uniforms: [N] float64 in [0, 1).
    Returns: [N] int64.
    Raises: ValueError if the shapes don't fit.
    """
    if logprobs.dim() != 2 or uniforms.shape != logprobs.shape[:1]:
        raise ValueError(f"logprobs {tuple(logprobs.shape)} and uniforms {tuple(uniforms.shape)} must be [N, V] and [N]")
    cumulative = logprobs.double().exp().cumsum(-1)
    threshold = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logprobs.shape[1] - 1)


def sample_uniforms(seed: int, prompt_ids: Sequence[str], indices: Sequence[int], num_tokens: int) -> Tensor:
    """One counter-based random stream for each sample, keyed by (seed, prompt id, index within the prompt).

    A sample's numbers don't depend on which others share its batch.

    Args:
        seed: of the run.
        prompt_ids: N ids.
        indices: N indices of the rollout within its group.
        num_tokens: T.
    Returns: [N, T] float64 in [0, 1).
    Raises: ValueError if there isn't an index for every prompt id.
    """
    if len(prompt_ids) != len(indices):
        raise ValueError(f"{len(prompt_ids)} prompt ids, but {len(indices)} indices")
    rows = np.empty((len(prompt_ids), num_tokens))
    for row, prompt_id, index in zip(rows, prompt_ids, indices, strict=True):
        key = hashlib.blake2b(f"{seed}\0{index}\0{prompt_id}".encode(), digest_size=16).digest()
        np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(out=row)
    return torch.from_numpy(rows)
