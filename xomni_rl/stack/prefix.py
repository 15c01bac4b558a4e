"""A group's prompt as a prefix that its rollouts share, and layers that are computed again in the backward pass.

transformers' growing cache changes whenever a layer runs, so a layer cannot be run twice. Here the prompt's keys and values
are noted once and then only read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer


class PromptPass(Cache):
    """For the pass over P prompts: notes each layer's keys and values, gradients included, and is empty to whoever reads it."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Noted)

    def followed_by(self, group_size: int) -> Cache:
        """For the pass over the N = P · group_size rows that follow, group-major: the prompts, and what a layer gives it."""
        return Cache(layers=[_Following(layer, group_size) for layer in self.layers])


class _Noted(DynamicLayer):
    """One layer's keys and values [P, K, L, d]; a second pass over the same prompts gives the same and changes nothing."""

    is_initialized: bool

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states


class _Following(DynamicLayer):
    """Keys and values [N, K, L + T, d] of a prompt's layer and of the rows after it; nothing is kept."""

    def __init__(self, prompt: _Noted, group_size: int) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = prompt.keys, prompt.values, True
        self.group_size = group_size

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        keys, values = (prompt.repeat_interleave(self.group_size, 0) for prompt in (self.keys, self.values))
        return torch.cat([keys, key_states], -2), torch.cat([values, value_states], -2)


@contextmanager
def layers_recomputed(model: nn.Module) -> Iterator[None]:
    """Within it, every layer that transformers marks as one keeps its inputs alone, and its backward pass runs it again."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    own = [vars(layer).get("forward") for layer in layers]  # where something was put around it before
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, before in zip(layers, own, strict=True):
            del layer.forward
            if before is not None:
                layer.forward = before
