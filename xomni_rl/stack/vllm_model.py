"""X-Omni of vLLM's layers; imported by vLLM alone. What it computes stands in `vllm_plugin.py`, which is tested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer

from . import vllm_plugin as plugin


@support_torch_compile(dynamic_arg_dims={"input_ids": {0: "b"}, "positions": {-1: "b"}})
class XOmniBody(nn.Module):
    """Embeddings, layers and final norms."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.text_size = plugin.text_vocab_size(config)
        self.only_mm = plugin.mm_only_layers(config)
        self.lm_embed_tokens = VocabParallelEmbedding(self.text_size, config.hidden_size)
        self.mm_embed_tokens = VocabParallelEmbedding(config.mm_vocab_size, config.hidden_size)
        cache, quantised = vllm_config.cache_config, vllm_config.quant_config
        self.layers = nn.ModuleList(
            Qwen2DecoderLayer(config, cache, quantised, prefix=f"{prefix}.layers.{i}") for i in range(config.num_hidden_layers)
        )
        self.lm_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mm_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def embed(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        embedded: tuple[Tensor, Tensor] = plugin.embedded(input_ids, self.text_size, self.lm_embed_tokens, self.mm_embed_tokens)
        return embedded

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states [n, hidden + 1] after the final norm, marked with their modality."""
        hidden, is_mm = self.embed(input_ids)
        hidden = plugin.run_layers(list(self.layers), self.only_mm, positions, hidden, is_mm)
        return plugin.marked(torch.where(is_mm, self.mm_norm(hidden), self.lm_norm(hidden)), is_mm)


class XOmniForCausalLM(nn.Module):
    """What vLLM asks of a text-generating model; image tokens are ids from the text vocabulary's size on."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError("X-Omni in vLLM is not cut into pipeline stages; use tensor parallelism")
        config = vllm_config.model_config.hf_config
        self.config = config
        base = f"{prefix}." if prefix else ""
        self.model = XOmniBody(vllm_config=vllm_config, prefix=f"{base}model")
        self.lm_head = ParallelLMHead(plugin.text_vocab_size(config), config.hidden_size)
        self.mm_head = ParallelLMHead(config.mm_vocab_size, config.hidden_size)
        self.text_logits = LogitsProcessor(plugin.text_vocab_size(config))
        self.mm_logits = LogitsProcessor(config.mm_vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed(input_ids)[0]

    def forward(
        self, input_ids: Tensor, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        if inputs_embeds is not None:
            raise ValueError("X-Omni in vLLM reads ids, not embeddings: images are tokens")
        hidden: Tensor = self.model(input_ids, positions)
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits [n, text and multimodal ids]; None in processes that do not sample."""
        hidden, is_mm = plugin.unmarked(hidden_states)
        text, mm = self.text_logits(self.lm_head, hidden), self.mm_logits(self.mm_head, hidden)
        if text is None or mm is None:
            return None
        return plugin.joint_logits(text, mm[:, : self.config.image_vocab_size], is_mm, self.config.vocab_size)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fills the parameters with published tensors; returns those that were filled."""
        parameters, filled = dict(self.named_parameters()), set()
        for name, weight in weights:
            own, part = plugin.target(name)
            load = getattr(parameters[own], "weight_loader", default_weight_loader)
            load(parameters[own], weight, *(() if part is None else (part,)))
            filled.add(own)
        return filled
