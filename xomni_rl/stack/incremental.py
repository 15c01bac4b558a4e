"""Image tokens one at a time: a preallocated key-value cache and a lean forward pass for positions that are all images.

transformers' own loop spends most of a step at this size outside arithmetic. Here the projections of a layer are one matrix,
norm weights are folded into the matrix that follows, the cache is written in place, and only the image head is computed.
The prompt is computed once per group and its cache expanded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from .autoregressive import XOmniForCausalLM
from .distribution import SamplingConfig, guide, sampling_logprobs
from .family import TokenModel


@dataclass(frozen=True)
class _Layer:
    """A decoder layer's weights as the lean pass wants them: norms folded, projections joined."""

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class ImageTokenSampler(ABC):
    """The model's next-token distribution over image tokens, with a cache that grows by `append`.

    Args:
        model: in evaluation mode.
        input_ids: [P, L] int64, left-padded prompts that end with `<IMAGE>`.
        attention_mask: [P, L], 1 where a position counts.
        num_tokens: T, how many tokens may be appended.
        sampling: temperature, truncation, guidance.
        group_size: G rollouts of each prompt; N = P·G, group-major.
        negative_ids, negative_mask: [P, L'], needed if `sampling` is guided.
    Raises: ValueError for other shapes, a missing negative prompt, or a context longer than the model's positions.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: XOmniForCausalLM,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        sampling: SamplingConfig | None = None,
        *,
        group_size: int = 1,
        negative_ids: Tensor | None = None,
        negative_mask: Tensor | None = None,
    ) -> None:
        self.sampling = sampling or SamplingConfig()
        check_prompts(model, input_ids, attention_mask, num_tokens)
        self.num_rows = len(input_ids) * group_size
        if self.sampling.guided:
            input_ids, attention_mask = with_negative(input_ids, attention_mask, negative_ids, negative_mask)
        self.model, self.num_tokens, self.count = model, num_tokens, 0
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim: int = _attention(model.model.layers[0]).head_dim
        cache = DynamicCache(config=config)
        outputs = model(input_ids, attention_mask, past_key_values=cache, use_cache=True, modality="image", logits_to_keep=1)
        self._next_logits = outputs.logits[:, 0].repeat_interleave(group_size, 0)
        self._begin(cache, attention_mask.bool().repeat_interleave(group_size, 0), group_size)

    @abstractmethod
    def _begin(self, cache: DynamicCache, mask: Tensor, group_size: int) -> None:
        """Takes over the prompts' keys and values.

        Args:
            cache: of each prompt (with guidance of the negative ones too, below).
            mask: [N, L] bool, the prompts' of every row.
            group_size: rows of each prompt.
        """

    @abstractmethod
    def _step(self, tokens: Tensor) -> Tensor:
        """Reads one token [N] more at position `count`: logits [N, V] of the next; with guidance N counts both halves."""

    def logits(self) -> Tensor:
        """[N, V] logits of the next token, guided if the sampling is."""
        if not self.sampling.guided:
            return self._next_logits
        conditional, negative = self._next_logits.split(self.num_rows)
        return guide(conditional, negative, self.sampling.cfg_scale)

    def logprobs(self) -> Tensor:
        """[N, V] log-probabilities of the next token under the distribution sampled from, nats."""
        return sampling_logprobs(self.logits(), self.sampling)

    @torch.no_grad()
    def append(self, tokens: Tensor) -> None:
        """Adds a token to every row.

        Args:
            tokens: [N] int64 in [0, image_vocab_size).
        Raises: ValueError for another shape or when all `num_tokens` are there.
        """
        if tokens.shape != (self.num_rows,):
            raise ValueError(f"tokens must be [{self.num_rows}], not {list(tokens.shape)}")
        if self.count == self.num_tokens:
            raise ValueError(f"all {self.num_tokens} tokens are there already")
        if self.count < self.num_tokens - 1:
            self._next_logits = self._step(tokens.repeat(2) if self.sampling.guided else tokens)
        self.count += 1


class IncrementalSampler(ImageTokenSampler):
    """The lean pass: weights are joined and read once, when it is made."""

    def _begin(self, cache: DynamicCache, mask: Tensor, group_size: int) -> None:
        model, (rows, length) = self.model, mask.shape
        self.eps = model.config.rms_norm_eps
        self.layers = [_join(layer) for layer in model.model.layers]
        self.head = model.mm_head.weight[: model.config.image_vocab_size] * model.model.mm_norm.weight
        shape = (rows, self.kv_heads, length + self.num_tokens, self.head_dim)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for layer in cache.layers:
            for store, source in ((self.keys, layer.keys), (self.values, layer.values)):
                buffer = source.new_empty(shape)
                buffer[:, :, :length] = source.repeat_interleave(group_size, 0)
                store.append(buffer)
        grown = torch.cat([mask, mask.new_ones(rows, self.num_tokens)], 1)
        self.bias = torch.zeros(grown.shape, dtype=self.head.dtype, device=grown.device).masked_fill_(~grown, -torch.inf)
        self.has_padding = not bool(mask.all())
        positions = mask.sum(1, keepdim=True) + torch.arange(self.num_tokens, device=mask.device)
        cos, sin = model.model.rotary_emb(self.head, positions)
        half = self.head_dim // 2
        self.cos = cos[:, :, None]
        self.sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)[:, :, None]
        self.length = length

    def _step(self, tokens: Tensor) -> Tensor:
        hidden = F.embedding(tokens, self.model.model.mm_embed_tokens.weight)
        for i in range(len(self.layers)):
            hidden = self._layer(i, hidden)
        return F.linear(F.rms_norm(hidden, hidden.shape[-1:], eps=self.eps), self.head)

    def _layer(self, index: int, hidden: Tensor) -> Tensor:
        """One layer at the current position: [N, hidden] → [N, hidden]."""
        weights, rows, width = self.layers[index], len(hidden), hidden.shape[-1:]
        position = self.length + self.count
        qkv = F.linear(F.rms_norm(hidden, width, eps=self.eps), weights.qkv, weights.qkv_bias)
        qkv = qkv.view(rows, self.heads + 2 * self.kv_heads, self.head_dim)
        turning, value = qkv.split([self.heads + self.kv_heads, self.kv_heads], 1)
        turned = turning * self.cos[:, self.count] + turning.roll(self.head_dim // 2, -1) * self.sin[:, self.count]
        query, key = turned.split([self.heads, self.kv_heads], 1)
        self.keys[index][:, :, position] = key
        self.values[index][:, :, position] = value
        attended = self._attend(query, self.keys[index][:, :, : position + 1], self.values[index][:, :, : position + 1])
        hidden = hidden + F.linear(attended.reshape(rows, -1), weights.out)
        gate, up = F.linear(F.rms_norm(hidden, width, eps=self.eps), weights.gate_up).chunk(2, -1)
        return hidden + F.linear(F.silu(gate) * up, weights.down)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Grouped-query attention of one position.

        The query heads that share a key head become rows of one small matrix product, so no key is read twice.

        Args:
            query: [N, heads, head_dim].
            keys, values: [N, kv_heads, t, head_dim].
        Returns: [N, heads, head_dim].
        """
        rows = len(query)
        grouped = query.view(rows, self.kv_heads, self.heads // self.kv_heads, self.head_dim)
        bias = self.bias[:, None, None, : keys.shape[2]] if self.has_padding else None
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias).view(rows, self.heads, self.head_dim)


def check_prompts(model: TokenModel, input_ids: Tensor, attention_mask: Tensor, num_tokens: int | Tensor) -> None:
    """Raises ValueError unless prompts are [P, L], masked alike, unpadded at the end, and fit the model's positions.

    `num_tokens` image tokens follow each prompt, or [P] of them.
    """
    if input_ids.dim() != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)} must both be [P, L]"
        )
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left: the last position of a prompt is masked")
    limit = model.config.get_text_config().max_position_embeddings
    prompts = attention_mask.sum(1)
    tokens = torch.as_tensor(num_tokens, device=prompts.device).expand_as(prompts)
    longest = int((prompts + tokens).argmax()) if len(prompts) else 0
    if len(prompts) and int(prompts[longest] + tokens[longest]) > limit:
        raise ValueError(
            f"the context is too long: {int(prompts[longest])} prompt ids and {int(tokens[longest])} image tokens, but the "
            f"model has {limit} positions; shorten the prompt or make the image smaller"
        )


def with_negative(
    input_ids: Tensor, attention_mask: Tensor, negative_ids: Tensor | None, negative_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Puts the negative prompts below the conditional ones, left-padded to one length: [2P, max L], and its mask.

    Raises: ValueError if there is no negative prompt for every prompt.
    """
    if negative_ids is None or negative_mask is None or len(negative_ids) != len(input_ids):
        raise ValueError("guidance (cfg_scale other than 1) needs negative_ids and negative_mask, one row per prompt")
    length = max(input_ids.shape[1], negative_ids.shape[1])
    ids = torch.cat([F.pad(x, (length - x.shape[1], 0)) for x in (input_ids, negative_ids)])
    mask = torch.cat([F.pad(x, (length - x.shape[1], 0)) for x in (attention_mask, negative_mask)])
    return ids, mask


def _attention(layer: Any) -> Any:
    """A decoder layer's attention; transformers' modules are untyped."""
    return layer.self_attn


def _join(layer: Any) -> _Layer:
    attention, mlp = _attention(layer), layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return _Layer(
        qkv=torch.cat([_weight(p) for p in projections]) * layer.input_layernorm.weight,
        qkv_bias=torch.cat([p.bias for p in projections]),
        out=_weight(attention.o_proj),
        gate_up=torch.cat([_weight(mlp.gate_proj), _weight(mlp.up_proj)]) * layer.post_attention_layernorm.weight,
        down=_weight(mlp.down_proj),
    )


def _weight(projection: Any) -> Tensor:
    """A projection's weight, with peft's low-rank adapters added unless it has none or they are switched off."""
    weight: Tensor = projection.weight
    if getattr(projection, "disable_adapters", True):
        return weight
    return weight + sum(projection.get_delta_weight(name) for name in projection.active_adapters)
