"""X-Omni for vLLM, as a plug-in: the registration, and all arithmetic that needs nothing of vLLM.

vLLM (0.33) finds `register` by the entry point group `vllm.general_plugins` in each of its processes, and builds the model of
`vllm_model.py` for folders whose config.json says `XOmniForCausalLM`. It was never run there: no GPU, no vLLM here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

JOINED = {"q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v")} | {
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""Projections that vLLM keeps in one matrix: its name, and which part."""

Layer = Callable[[Tensor, Tensor, None], tuple[Tensor, Tensor]]
"""As vLLM has them: positions, hidden states and no residual → what is added, and what it is added to."""


def register() -> None:
    """Makes the architecture known to vLLM; the model is imported when it is built."""
    from vllm import ModelRegistry

    from . import autoregressive  # transformers learns the configuration's class from it

    architecture = autoregressive.XOmniForCausalLM.__name__
    ModelRegistry.register_model(architecture, "xomni_rl.stack.vllm_model:XOmniForCausalLM")


def joint_vocabulary(config: Any) -> Any:
    """For vLLM's `hf_overrides`: one vocabulary of text and multimodal ids, as its sampler and its checks of prompts count.

    Args:
        config: `XOmniConfig`; changed. Its `text_vocab_size` is from then on where image ids begin.
    """
    if not hasattr(config, "text_vocab_size"):
        config.text_vocab_size = config.vocab_size
        config.vocab_size += config.mm_vocab_size
    return config


def text_vocab_size(config: Any) -> int:
    """Where image ids begin. Raises: ValueError if vLLM counts text alone, since no image could be drawn."""
    if not hasattr(config, "text_vocab_size"):
        raise ValueError("X-Omni in vLLM needs hf_overrides=xomni_rl.stack.vllm_plugin.joint_vocabulary")
    count: int = config.text_vocab_size
    return count


def target(name: str) -> tuple[str, str | int | None]:
    """Where vLLM's model keeps a published tensor: the parameter's name, and which part of it.

    >>> target("model.layers.0.self_attn.k_proj.bias")
    ('model.layers.0.self_attn.qkv_proj.bias', 'k')
    """
    for own, (joined, part) in JOINED.items():
        if f".{own}." in name:
            return name.replace(own, joined), part
    return name, None


def embedded(input_ids: Tensor, text_size: int, text: Callable[[Tensor], Tensor], image: Callable[[Tensor], Tensor]) -> Any:
    """Mixed ids [n] as embeddings [n, hidden] of two tables, and which of them are multimodal [n, 1] bool."""
    is_mm = (input_ids >= text_size)[:, None]
    of_text = text(input_ids.clamp(max=text_size - 1))
    return torch.where(is_mm, image((input_ids - text_size).clamp(min=0)), of_text), is_mm


def run_layers(layers: Sequence[Layer], only_mm: Sequence[bool], positions: Tensor, hidden: Tensor, is_mm: Tensor) -> Tensor:
    """Runs vLLM's layers; from those that `only_mm` names text passes by unchanged. [n, hidden] → [n, hidden]."""
    for layer, only in zip(layers, only_mm, strict=True):
        added, before = layer(positions, hidden, None)
        hidden = torch.where(is_mm, added + before, hidden) if only else added + before
    return hidden


def mm_only_layers(config: Any) -> list[bool]:
    """Whether text passes each layer by."""
    last = config.num_hidden_layers - config.num_mm_head_layers
    return [index < config.num_mm_adap_layers or index >= last for index in range(config.num_hidden_layers)]


def marked(hidden: Tensor, is_mm: Tensor) -> Tensor:
    """Hidden states [n, hidden] with a column more, 1 at multimodal positions: vLLM hands nothing else on to the heads."""
    return torch.cat([hidden, is_mm.to(hidden.dtype)], -1)


def unmarked(hidden: Tensor) -> tuple[Tensor, Tensor]:
    """What `marked` was given."""
    return hidden[:, :-1].contiguous(), hidden[:, -1:] > 0.5


def joint_logits(text: Tensor, image: Tensor, is_mm: Tensor, width: int) -> Tensor:
    """Logits over one vocabulary: after a multimodal id an image token follows, else text.

    Args:
        text: [n, V].
        image: [n, image_vocab_size].
        is_mm: [n, 1] bool, of the ids that were read.
        width: V and all multimodal ids.
    Returns: [n, width]; −inf at the other modality and at multimodal ids that are no image tokens.
    """
    logits = torch.cat([text.masked_fill(is_mm, -torch.inf), image.masked_fill(~is_mm, -torch.inf)], -1)
    return torch.nn.functional.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)
