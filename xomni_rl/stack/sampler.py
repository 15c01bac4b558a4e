"""Sampling image tokens, and scoring them again with gradients under the very same distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .distribution import SamplingConfig, draw_tokens, entropy, guide, sample_uniforms, sampling_logprobs
from .family import TokenModel
from .incremental import IncrementalSampler, check_prompts, with_negative

__all__ = [
    "PADDING",
    "IncrementalSampler",
    "Samples",
    "SamplingConfig",
    "draw_tokens",
    "image_token_features",
    "image_token_logprobs",
    "sample_image_tokens",
    "sample_uniforms",
    "score_image_tokens",
]


LOGITS_AT_A_TIME = 2**24
"""Logits in memory while scoring: 64 MiB in float32, and a few times that with their gradients, whatever the vocabulary."""

PADDING = -1
"""Stands after the tokens of an image that is smaller than others of its batch; such an entry does not count."""


@dataclass(frozen=True)
class Samples:
    """Sampled image tokens.

    Attributes:
        tokens: [N, T] int64 in [0, image_vocab_size).
        logprobs: [N, T] float32 nats, under the distribution sampled from.
        entropy: [N, T] float32 nats, of that distribution.
    """

    tokens: Tensor
    logprobs: Tensor
    entropy: Tensor


@torch.no_grad()
def sample_image_tokens(
    model: TokenModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    cfg_scale: float = 1.0,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
    group_size: int = 1,
    negative_ids: Tensor | None = None,
    negative_mask: Tensor | None = None,
    on_tokens: Callable[[Tensor], None] | None = None,
) -> Samples:
    """Samples image tokens after prompts.

    Args:
        model: the autoregressive model.
        input_ids: [P, L] int64, left-padded, ending with `<IMAGE>`.
        attention_mask: [P, L].
        num_tokens: T.
        temperature, top_k, top_p, min_p, cfg_scale: see `SamplingConfig`.
        generator: source of randomness where `uniforms` is not given; None = torch's global one.
        uniforms: [N, T] in [0, 1): the random number that decides each token (`sample_uniforms` makes one stream per sample).
        group_size: G rollouts of each prompt; N = P·G, rows p·G … p·G + G − 1 belong to prompt p.
        negative_ids, negative_mask: [P, L'], the negative prompt; needed with guidance.
        on_tokens: given the tokens [N] of every step as soon as they are drawn, to show how far it is.
    Returns: tokens and their log-probabilities under the distribution sampled from.
    Raises: ValueError for shapes or settings that don't fit.
    """
    rows = len(input_ids) * group_size
    if uniforms is None:
        uniforms = torch.rand(rows, num_tokens, generator=generator, dtype=torch.float64)
    if uniforms.shape != (rows, num_tokens):
        raise ValueError(f"uniforms must be [{rows}, {num_tokens}], not {list(uniforms.shape)}")
    sampler = model.image_sampler(
        input_ids,
        attention_mask,
        num_tokens,
        SamplingConfig(temperature, top_k, top_p, min_p, cfg_scale),
        group_size=group_size,
        negative_ids=negative_ids,
        negative_mask=negative_mask,
    )
    uniforms = uniforms.to(input_ids.device)
    steps = []
    for t in range(num_tokens):
        logprobs = sampler.logprobs()
        chosen = draw_tokens(logprobs, uniforms[:, t])
        steps.append((chosen, logprobs.gather(1, chosen[:, None])[:, 0], entropy(logprobs)))
        if on_tokens is not None:
            on_tokens(chosen)
        sampler.append(chosen)
    tokens, chosen_logprobs, entropies = (torch.stack(column, 1) for column in zip(*steps, strict=True))
    return Samples(tokens, chosen_logprobs, entropies)


def score_image_tokens(
    model: TokenModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    tokens: Tensor,
    *,
    group_size: int = 1,
    sampling: SamplingConfig | None = None,
    negative_ids: Tensor | None = None,
    negative_mask: Tensor | None = None,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of given image tokens, with gradients, over the image vocabulary alone.

    The prompt is computed once per group; its keys and values are shared by the group's rollouts, gradients included.

    Args:
        model: the autoregressive model.
        input_ids, attention_mask: [P, L], as in `sample_image_tokens`.
        tokens: [N, T] int64, N = P·G, group-major; a shorter row ends with `PADDING`.
        group_size: G.
        sampling: the distribution the tokens were sampled from.
        negative_ids, negative_mask: [P, L'], needed with guidance.
        with_entropy: whether the entropy is wanted too.
    Returns: logprobs [N, T] and entropy [N, T] (None unless wanted), both with gradients, float32 nats; 0 at padding.
    Raises: ValueError for shapes that don't fit.
    """
    sampling = sampling or SamplingConfig()
    _check_tokens(model, input_ids, attention_mask, tokens, group_size)
    all_tokens, tokens = tokens, _without_padding(tokens)
    hidden = _scored_features(model, input_ids, attention_mask, tokens, group_size, sampling, negative_ids, negative_mask)

    def score(chosen: Tensor, conditional: Tensor, negative: Tensor | None = None) -> tuple[Tensor, ...]:
        logits = model.image_logits(conditional)
        if negative is not None:
            logits = guide(logits, model.image_logits(negative), sampling.cfg_scale)
        logprobs = sampling_logprobs(logits, sampling, chosen=chosen)
        own = logprobs.gather(-1, chosen[..., None])[..., 0]
        return (own, entropy(logprobs)) if with_entropy else (own,)

    logprobs, *rest = (_with_padding(each, all_tokens) for each in _a_piece_at_a_time(model, score, tokens, hidden))
    return logprobs, rest[0] if with_entropy else None


@torch.no_grad()
def image_token_features(
    model: TokenModel, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, *, group_size: int = 1
) -> Tensor:
    """What the model has in mind before each image token: the hidden states that predict them.

    Args: as in `score_image_tokens`.
    Returns: [N, T, hidden_size], in the model's dtype, without gradients; 0 at padding.
    Raises: ValueError for shapes that don't fit.
    """
    _check_tokens(model, input_ids, attention_mask, tokens, group_size)
    features = _image_features(model, input_ids, attention_mask, _without_padding(tokens), group_size)
    return _with_padding(features, tokens)


def image_token_logprobs(
    model: TokenModel, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, *, group_size: int = 1
) -> Tensor:
    """`score_image_tokens` at temperature 1 without its entropy.

    Returns: [N, T] float32 nats, with gradients; 0 at padding.
    """
    _check_tokens(model, input_ids, attention_mask, tokens, group_size)
    all_tokens, tokens = tokens, _without_padding(tokens)
    features = _image_features(model, input_ids, attention_mask, tokens, group_size)

    def score(chosen: Tensor, conditional: Tensor) -> tuple[Tensor, ...]:
        logits = model.image_logits(conditional).float()
        return (-nn.functional.cross_entropy(logits.flatten(0, -2), chosen.flatten(), reduction="none").view(chosen.shape),)

    return _with_padding(_a_piece_at_a_time(model, score, tokens, [features])[0], all_tokens)


def _check_tokens(model: TokenModel, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, group_size: int) -> None:
    """Raises ValueError unless tokens are [P · G, T] and each row fits the model's positions after its prompt."""
    if tokens.dim() != 2 or len(tokens) != len(input_ids) * group_size:
        raise ValueError(f"tokens must be [{len(input_ids) * group_size}, T], not {list(tokens.shape)}")
    check_prompts(model, input_ids, attention_mask, (tokens != PADDING).sum(1).view(-1, group_size).amax(1))


def _without_padding(tokens: Tensor) -> Tensor:
    """Tokens [N, T'] up to the longest row's last; what is left of the padding is some token, which none before it sees."""
    return tokens[:, (tokens != PADDING).any(0)].clamp(min=0)


def _with_padding(values: Tensor, tokens: Tensor) -> Tensor:
    """Values [N, T', …] of tokens without padding as [N, T, …], 0 at the padding of `tokens` [N, T]."""
    if values.shape[1] == tokens.shape[1] and bool((tokens != PADDING).all()):
        return values
    mask = (tokens != PADDING).view(*tokens.shape, *[1] * (values.dim() - 2))
    missing = tokens.shape[1] - values.shape[1]
    return torch.where(mask, torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], 1), 0)


def _a_piece_at_a_time(
    model: TokenModel, score: Callable[..., tuple[Tensor, ...]], tokens: Tensor, features: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Scores tokens with at most `LOGITS_AT_A_TIME` logits in memory; if there are more, the backward pass computes them again.

    Args:
        model: whose image head `score` uses.
        score: tokens [..., ] and their features → tensors of the tokens' shape.
        tokens: [N, T].
        features: each [N, T, hidden].
    Returns: tensors [N, T].
    """
    with torch.no_grad():
        vocabulary = model.image_logits(features[0][:1, :1]).shape[-1]
    rows = max(1, LOGITS_AT_A_TIME // (vocabulary * len(features)))
    if tokens.numel() <= rows:
        return score(tokens, *features)
    flat = [tokens.flatten(), *(each.flatten(0, 1) for each in features)]
    pieces = zip(*(each.split(rows) for each in flat), strict=True)
    scored = [checkpoint(score, *piece, use_reentrant=False) for piece in pieces]
    return tuple(torch.cat(column).view(tokens.shape) for column in zip(*scored, strict=True))


def _scored_features(
    model: TokenModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    tokens: Tensor,
    group_size: int,
    sampling: SamplingConfig,
    negative_ids: Tensor | None,
    negative_mask: Tensor | None,
) -> list[Tensor]:
    """Features [N, T, hidden] that predict each of `tokens`, and with guidance those after the negative prompt."""
    if not sampling.guided:
        return [_image_features(model, input_ids, attention_mask, tokens, group_size)]
    input_ids, attention_mask = with_negative(input_ids, attention_mask, negative_ids, negative_mask)
    return list(_image_features(model, input_ids, attention_mask, tokens.repeat(2, 1), group_size).chunk(2))


def _image_features(model: TokenModel, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, group_size: int) -> Tensor:
    """Hidden states that predict each of `tokens`: [N, T, hidden_size]."""
    return model.image_features(input_ids, attention_mask, tokens, group_size)
