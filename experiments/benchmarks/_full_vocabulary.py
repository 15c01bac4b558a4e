"""The embedded stack with vocabularies as large as the published model's: what they cost, at a body that fits two cores.

It draws the very same pictures from the same random numbers: every image token of the embedded stack stands there as a row of
equal copies, which share its probability. Text ids beyond the embedded ones exist and are never used.
"""

from __future__ import annotations

import json

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.decoder import DiffusionDecoder
from xomni_rl.stack.image_tokenizer import SemanticImageTokenizer, VQProjector
from xomni_rl.stack.stack import Stack

VOCABULARY, MULTIMODAL, IMAGES = 152064, 16448, 16384
"""Rows of the published model's text embedding, of its multimodal embedding, and image tokens among the latter."""


def with_full_vocabulary(
    stack: Stack, vocab_size: int = VOCABULARY, mm_vocab_size: int = MULTIMODAL, image_vocab_size: int = IMAGES
) -> Stack:
    """The stack with larger vocabularies and otherwise its own weights.

    Args:
        stack: any; it is left as it is, but shares the decoder's transformer.
        vocab_size, mm_vocab_size, image_vocab_size: as in `XOmniConfig`.
    Raises: ValueError unless the image tokens are a whole multiple of the stack's, and the others no fewer.
    """
    old = stack.model.config
    if image_vocab_size % old.image_vocab_size or vocab_size < old.vocab_size:
        held = f"{old.image_vocab_size} and {old.vocab_size}"
        raise ValueError(f"{image_vocab_size} image and {vocab_size} text tokens don't hold {held} in whole copies")
    sizes = {"vocab_size": vocab_size, "mm_vocab_size": mm_vocab_size, "image_vocab_size": image_vocab_size}
    projector = _projector(stack.image_tokenizer.projector, image_vocab_size)
    decoder = stack.decoder
    return Stack(
        _model(stack.model, sizes),
        _tokenizer(stack, **sizes),
        SemanticImageTokenizer(stack.image_tokenizer.vision, projector),
        DiffusionDecoder(decoder.transformer, decoder.scheduler, projector, decoder.codec, decoder.steps),
        f"{stack.name}, full vocabulary",
        stack.default_size,
    )


def _model(model: XOmniForCausalLM, sizes: dict[str, int]) -> XOmniForCausalLM:
    large = XOmniForCausalLM(XOmniConfig(**{**model.config.to_dict(), **sizes}))
    state = model.state_dict()
    images = model.config.image_vocab_size
    for name in ("model.lm_embed_tokens.weight", "lm_head.weight"):
        state[name] = _padded(state[name], sizes["vocab_size"])
    for name in ("model.mm_embed_tokens.weight", "mm_head.weight"):
        copies = state[name][:images].repeat_interleave(sizes["image_vocab_size"] // images, 0)
        state[name] = _padded(torch.cat([copies, state[name][images:]]), sizes["mm_vocab_size"])
    large.load_state_dict(state)
    return large


def _padded(rows: Tensor, count: int) -> Tensor:
    """Rows [R, H] with zeros below, [count, H]."""
    return torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])])


def _projector(projector: VQProjector, codebook_size: int) -> VQProjector:
    large = VQProjector(**{**projector.config, "codebook_size": codebook_size})
    state = projector.state_dict()
    codes = state["quantize.embedding.weight"]
    state["quantize.embedding.weight"] = codes.repeat_interleave(codebook_size // len(codes), 0)
    large.load_state_dict(state)
    return large


def _tokenizer(stack: Stack, vocab_size: int, mm_vocab_size: int, image_vocab_size: int) -> PreTrainedTokenizerFast:
    """The stack's text tokenizer, its own text ids unchanged, with further reserved ones and the image tokens above them."""
    config = stack.model.config
    described = json.loads(stack.text_tokenizer.backend_tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["id"] < config.vocab_size]
    core = Tokenizer.from_str(json.dumps(described))
    names = [f"<|reserved_{i}|>" for i in range(config.vocab_size, vocab_size)]
    names += [f"<MM-Token-{i}>" for i in range(image_vocab_size)] + list(config.mm_special_tokens or ())
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
    )
