"""Image tokens one at a time at fixed shapes, so that a step is compiled once and, on a GPU, replayed as a CUDA graph.

Every step reads the whole cache, with a mask made from the position, and the model's own weights: none is copied, and an update
between two rollouts compiles nothing again. The cache's memory stays for the next rollout, at the same address.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from .autoregressive import XOmniForCausalLM
from .incremental import ImageTokenSampler
from .stack_folder import StackError

PROMPT_BLOCK = 32
"""Prompts take multiples of so many slots, so that prompts of about a length share a compiled step."""
MOST_SHAPES = 64
"""Shapes (rows, slots) and settings of a model that a process compiles before that is an error."""

Step = Callable[..., Tensor]


def compile_sampling(model: Any, backend: str = "inductor") -> None:
    """From now on the model samples with a compiled step.

    Args:
        model: an X-Omni model.
        backend: of `torch.compile`; inductor makes CUDA graphs on a GPU and C++ on a CPU.
    Raises: StackError for a model of another family.
    """
    if not isinstance(model, XOmniForCausalLM):
        raise StackError(f"sampling of {type(model).__name__} is not compiled, that of X-Omni alone is: leave `compile` off")
    model.sampling_backend = backend


class StaticSampler(ImageTokenSampler):
    """The compiled pass, by the model's `sampling_backend`; None = the same pass, not compiled."""

    def _begin(self, cache: DynamicCache, mask: Tensor, group_size: int) -> None:
        rows, length = mask.shape
        padded = -(-length // PROMPT_BLOCK) * PROMPT_BLOCK
        size = -(-(padded + self.num_tokens) // 8) * 8  # GPU kernels of attention want multiples of 8
        self.memory = _borrowed(self, len(cache.layers))
        shape = (rows, self.kv_heads, size, self.head_dim)
        self.keys, self.values = (
            [lent.zeroed(shape, getattr(layer, kind)) for lent, layer in zip(memory, cache.layers, strict=True)]
            for memory, kind in zip(self.memory, ("keys", "values"), strict=True)
        )
        for layer, keys, values in zip(cache.layers, self.keys, self.values, strict=True):
            keys[:, :, padded - length : padded] = layer.keys.repeat_interleave(group_size, 0)
            values[:, :, padded - length : padded] = layer.values.repeat_interleave(group_size, 0)
        self.seen = F.pad(F.pad(mask, (padded - length, 0)), (0, size - padded), value=True)
        self.offset = mask.sum(1) - padded
        self.slot = torch.tensor([padded], device=mask.device)

    def _step(self, tokens: Tensor) -> Tensor:
        if self.slot.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            step = _compiled(self.model.sampling_backend, self.slot.device.type)
            logits = step(self.model, self.keys, self.values, self.seen, self.offset, self.slot, tokens)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise StackError(f"the sampler's step cannot be compiled here ({reason}); leave `compile` off") from error
        self.slot += 1
        return logits.clone()  # a CUDA graph writes its next result to the same place


def next_logits(
    model: XOmniForCausalLM,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    seen: Tensor,
    offset: Tensor,
    slot: Tensor,
    tokens: Tensor,
) -> Tensor:
    """Reads one image token of every row and writes its keys and values into the cache.

    Args:
        model: its own modules are used, adapters included.
        keys, values: of each layer [N, kv_heads, S, head_dim].
        seen: [N, S] bool, False where a prompt is padded.
        offset: [N] int64; the token's position is slot + offset.
        slot: [1] int64, where the token goes; later slots are not looked at.
        tokens: [N] int64 in [0, image_vocab_size).
    Returns: [N, image_vocab_size], logits of the next token.
    """
    body: Any = model.model
    hidden = body.mm_embed_tokens(tokens)
    visible = seen & (torch.arange(seen.shape[1], device=seen.device) <= slot)
    cos, sin = body.rotary_emb(hidden, (slot + offset)[:, None])
    for layer, own_keys, own_values in zip(body.layers, keys, values, strict=True):
        normed = layer.input_layernorm(hidden)
        hidden = hidden + _attended(layer.self_attn, normed, own_keys, own_values, visible, cos, sin, slot)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.head(body.mm_norm(hidden), "image")


def _attended(
    attention: Any, hidden: Tensor, keys: Tensor, values: Tensor, visible: Tensor, cos: Tensor, sin: Tensor, slot: Tensor
) -> Tensor:
    """Grouped-query attention of one position: [N, hidden] → [N, hidden]; query heads of a key head are rows of one product."""
    rows, kv_heads, _, head_dim = keys.shape
    query, key, value = (
        project(hidden).view(rows, -1, head_dim) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = query * cos + _half_turned(query) * sin, key * cos + _half_turned(key) * sin
    keys.index_copy_(2, slot, key[:, :, None])
    values.index_copy_(2, slot, value[:, :, None])
    grouped = query.view(rows, kv_heads, -1, head_dim)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=visible[:, None, None])
    return attention.o_proj(out.reshape(rows, -1))


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


@functools.cache
def _compiled(backend: str | None, device_type: str) -> Step:
    if backend is None:
        return next_logits
    mode = "reduce-overhead" if device_type == "cuda" and backend == "inductor" else None
    step = torch.compile(next_logits, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def with_many_shapes(*arguments: Any) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            return step(*arguments)

    return with_many_shapes


class _Memory:
    """One layer's keys or values: a tensor of any shape at one address, as long as none was larger.

    Attributes:
        size: elements, 0 before it was lent.
    """

    def __init__(self) -> None:
        self._flat: Tensor | None = None

    @property
    def size(self) -> int:
        return 0 if self._flat is None else self._flat.numel()

    def zeroed(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Zeros of a shape, with dtype and device of `like`, in place of what was lent before."""
        count = torch.Size(shape).numel()
        flat = self._flat
        if flat is None or self.size < count or flat.dtype != like.dtype or flat.device != like.device:
            flat = self._flat = like.new_empty(count)
        strides = like.new_empty(shape, device="meta").stride()
        lent = like.new_empty(0).set_(flat.untyped_storage(), 0, shape, strides)  # no view, which a compiler takes for two
        torch._dynamo.mark_static_address(lent)
        return lent.zero_()


Pair = tuple[list[_Memory], list[_Memory]]
_idle: weakref.WeakKeyDictionary[XOmniForCausalLM, list[Pair]] = weakref.WeakKeyDictionary()
"""Memory of a model's caches that no sampler uses now."""


def _borrowed(sampler: StaticSampler, layers: int) -> Pair:
    """Memory for keys and values of each layer, the sampler's own until nothing refers to it any more."""
    idle = _idle.setdefault(sampler.model, [])
    idle.sort(key=lambda pair: pair[0][0].size)
    pair = idle.pop() if idle else ([_Memory() for _ in range(layers)], [_Memory() for _ in range(layers)])
    weakref.finalize(sampler, idle.append, pair).atexit = False
    return pair
