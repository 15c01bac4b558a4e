"""Janus-Pro: a Llama body with embeddings, aligner and head of its own for images, and a VQ decoder.

An image is `side`² tokens in rows, 24 × 24 at the published size (384 × 384 px), after
`<begin of sentence><|User|>: {prompt}\\n\\n<|Assistant|>:<begin_of_image>`: the processor's chat template and image mode.

Source: arXiv:2501.17811; transformers' `JanusForConditionalGeneration`. Departs from its `generate`: without guidance the
unconditional half is not computed (there `guidance_scale` of 1 or less fails for every batch); the checkpoint's
`generation_config.json` (sampling, scale 5) is not read, `trainer.sampling` says it all. The published weights were not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xomni_rl.stack.cached import CachedTokenModel
from xomni_rl.stack.family import families
from xomni_rl.stack.pretrained import PretrainedStack, without_branches
from xomni_rl.stack.stack import StackError

SPECIALS = ("<begin_of_image>", "<end_of_image>", "<image_placeholder>", "<|User|>", "<|Assistant|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role | capitalize }}|>: {% for part in message.content %}{{ part.text }}"
    "{% endfor %}{{ '\n\n' }}{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)
"""Of the tiny stack; a checkpoint brings its own."""

TINY: dict[str, dict[str, Any]] = {
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
    },
    "vision_config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 64,
        "num_image_tokens": 16,
    },
    "vq_config": {
        "num_embeddings": 64,
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": (1, 1, 1, 1),
        "num_res_blocks": 1,
        "projection_dim": 64,
        "image_token_embed_dim": 64,
        "initializer_range": 0.1,
    },
}
"""4 × 4 tokens of 8 px from a codebook of 64; the VQ model's group norms ask for 32 channels."""


class JanusTokenModel(CachedTokenModel):
    """What of Janus-Pro predicts image tokens: its body, and generation embeddings, aligner and head."""

    def __init__(self, whole: Any) -> None:
        super().__init__(whole.config, whole.model.language_model)
        self.generation_embeddings = whole.model.generation_embeddings
        self.generation_aligner = whole.model.generation_aligner
        self.generation_head = whole.model.generation_head

    def embed_tokens(self, tokens: Tensor, first: int, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing stands between image tokens."""
        embedded = self.generation_aligner(self.generation_embeddings(tokens))
        return embedded, torch.arange(tokens.shape[1], device=tokens.device)

    def image_logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.generation_head(features)
        return logits


@families.register("janus")
class JanusStack(PretrainedStack):
    """Janus-Pro: 384 × 384 px, 576 tokens, guidance by a blanked prompt."""

    kind = "Janus-Pro"

    @staticmethod
    def classes() -> tuple[Any, Any]:
        from transformers import JanusForConditionalGeneration, JanusProcessor

        return JanusForConditionalGeneration, JanusProcessor

    @staticmethod
    def token_model(whole: Any) -> CachedTokenModel:
        return JanusTokenModel(whole)

    @classmethod
    def size_of(cls, folder: Path, whole: Any) -> tuple[int, int]:
        side = whole.config.vision_config.image_size
        return side, side

    @classmethod
    def tiny_random(cls, seed: int = 0) -> JanusStack:
        """4 × 4 tokens, about 0.5 M random parameters."""
        from transformers import JanusConfig

        processor = _tiny_processor()
        vocabulary = processor.tokenizer.get_vocab()
        config = JanusConfig(
            text_config=TINY["text_config"] | {"vocab_size": len(vocabulary)},
            vision_config=dict(TINY["vision_config"]),
            vq_config=dict(TINY["vq_config"]),
            image_token_id=vocabulary["<image_placeholder>"],
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            whole = without_branches(cls.classes()[0](config))
        return cls(whole, processor, "tiny_random", cls.size_of(Path(), whole))

    @property
    def image_vocab_size(self) -> int:
        count: int = self.whole.config.vq_config.num_embeddings
        return count

    @property
    def token_size(self) -> int:
        step: int = self.default_size[0] // self.whole.config.vq_config.num_patches
        return step

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Token grid (h, w). Raises: StackError for any size but the model's own."""
        if size is not None and tuple(size) != self.default_size:
            own = "x".join(map(str, self.default_size))
            raise StackError(f"{self.kind} draws {own} px and no other size, not {size[0]}x{size[1]}")
        return super().grid(size)

    def prompt_ids(self, texts: Sequence[str], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        turns = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
        prompts = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        encoded = self.processor(text=prompts, generation_mode="image", padding=True, return_tensors="pt")
        return encoded.input_ids, encoded.attention_mask

    def negative_prompts(
        self, input_ids: Tensor, attention_mask: Tensor, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same prompts with padding in place of every id but the first and the one that opens the image.

        As in transformers' `generate`, that padding is attended to: it stands under the prompt's own mask.
        """
        tokenizer = self.processor.tokenizer
        kept = (input_ids == tokenizer.bos_token_id) | (input_ids == tokenizer.boi_token_id)
        return input_ids.masked_fill(~kept, tokenizer.pad_token_id), attention_mask

    def vq_decode(self, tokens: Tensor) -> Tensor:
        pixels: Tensor = self.whole.model.vqmodel.decode(tokens.flatten(1))
        return pixels

    def vq_encode(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.whole.model.vqmodel.encode(pixels).image_tokens
        return tokens.view(len(pixels), *self.grid())


def _tiny_processor() -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import JanusImageProcessor, JanusProcessor, PreTrainedTokenizerFast

    from xomni_rl.stack.text import train_text_tokenizer

    core = train_text_tokenizer(["a red sign"], 384, 0, SPECIALS).backend_tokenizer
    begin = "<|im_start|>"
    core.post_processor = TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, core.token_to_id(begin))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=begin,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_placeholder>",
        },
    )
    side = TINY["vision_config"]["image_size"]
    image_processor = JanusImageProcessor(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return JanusProcessor(image_processor, tokenizer, chat_template=TEMPLATE, num_image_tokens=16)
