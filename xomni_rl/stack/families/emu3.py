"""Emu3: one vocabulary for text and image tokens, rows of an image closed by a token of their own, a VQ decoder.

After `<begin>{prompt}<|image start|>{h}*{w}<|image token|>` come h rows of w image tokens, each followed by
`<|extra_200|>`. Those ends of rows are forced: they are read but never sampled, and have no log-probability. What a policy
chooses from is the image tokens alone, the distribution that `prefix_allowed_tokens_fn` leaves in transformers' example.

Source: arXiv:2409.18869; transformers' `Emu3ForConditionalGeneration` and the example in its documentation. Departs from
it: the three tokens after the last row are not generated, for nothing depends on them; guidance moves away from an empty
prompt where the example names defects (`negative_text`). The published weights were not run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xomni_rl.stack.cached import CachedTokenModel
from xomni_rl.stack.family import families
from xomni_rl.stack.pretrained import PretrainedStack, without_branches

PUBLISHED_SIZE = (720, 720)
"""(height, width) px: the area of transformers' processor, 518400, in a square."""
BEGIN, OPEN, END_OF_ROW = "<|image start|>", "<|image token|>", "<|extra_200|>"

TINY_CODEBOOK = 64
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
TINY_VQ: dict[str, Any] = {
    "codebook_size": TINY_CODEBOOK,
    "base_channels": 32,
    "channel_multiplier": (1, 1, 1, 1),
    "num_res_blocks": 1,
    "hidden_size": 32,
}


class Emu3TokenModel(CachedTokenModel):
    """What of Emu3 predicts image tokens: all of it but the VQ model."""

    token_ids: Tensor

    def __init__(self, whole: Any) -> None:
        super().__init__(whole.config, whole.model.text_model)
        self.lm_head = whole.lm_head
        tokens = whole.vocabulary_mapping.img2bpe_mapping_tensor.long()
        self.register_buffer("token_ids", tokens, persistent=False)
        first, last = int(tokens[0]), int(tokens[-1])
        adjacent = torch.equal(tokens.cpu(), torch.arange(first, last + 1))
        self._rows = slice(first, last + 1) if adjacent else None  # a view of the head's rows, where a choice is a copy
        ids = whole.config.vocabulary_map
        self.begin, self.open, self.end_of_row = ids[BEGIN], ids[OPEN], ids[END_OF_ROW]
        self._numbers = {number: text for text, number in ids.items() if text and not text.strip("0123456789*")}

    def embed_tokens(self, tokens: Tensor, first: int, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's last token is followed by the end of the row, which then predicts the next token."""
        order = torch.arange(tokens.shape[1], device=tokens.device)
        closes = ((first + order + 1) % self.row_length(input_ids) == 0).long()
        places = order + closes.cumsum(0) - closes
        ids = tokens.new_full((len(tokens), tokens.shape[1] + int(closes.sum())), self.end_of_row)
        ids[:, places] = self.token_ids[tokens]
        return self.embed_prompts(ids), places + closes

    def row_length(self, input_ids: Tensor) -> int:
        """w, as prompts [P, L] say it.

        Raises: ValueError for prompts that don't end with `<|image start|>{h}*{w}<|image token|>`.
        """
        row = input_ids[0].tolist()
        if self.begin in row and row[-1] == self.open:
            size = row[len(row) - row[::-1].index(self.begin) : -1]
            _, _, width = "".join(self._numbers.get(number, " ") for number in size).partition("*")
            if width.isdecimal():
                return int(width)
        raise ValueError(f"an Emu3 prompt must end with {BEGIN}HEIGHT*WIDTH{OPEN}")

    def image_logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.lm_head.weight[self.token_ids if self._rows is None else self._rows])


@families.register("emu3")
class Emu3Stack(PretrainedStack):
    """Emu3: any multiple of 8 px, image tokens in the text's vocabulary, rows closed by forced tokens.

    Attributes:
        negative_text: what guidance moves away from.
    """

    kind = "Emu3"

    def __init__(self, whole: Any, processor: Any, name: str, default_size: tuple[int, int]) -> None:
        super().__init__(whole, processor, name, default_size)
        processor.tokenizer.padding_side = "left"
        self.negative_text = ""

    @staticmethod
    def classes() -> tuple[Any, Any]:
        from transformers import Emu3ForConditionalGeneration, Emu3Processor

        return Emu3ForConditionalGeneration, Emu3Processor

    @staticmethod
    def token_model(whole: Any) -> CachedTokenModel:
        return Emu3TokenModel(whole)

    @classmethod
    def size_of(cls, folder: Path, whole: Any) -> tuple[int, int]:
        """Of a stack we wrote, its own; else the published one."""
        described = folder / "stack.json"
        if not described.exists():
            return PUBLISHED_SIZE
        height, width = json.loads(described.read_text(encoding="utf-8"))["default_size"]
        return height, width

    @classmethod
    def tiny_random(cls, seed: int = 0) -> Emu3Stack:
        """3 × 4 tokens of 8 px, about 0.7 M random parameters."""
        from transformers import Emu3Config

        processor = _tiny_processor()
        vocabulary = processor.tokenizer.get_vocab()
        ends = {"bos_token_id": vocabulary["<|im_start|>"], "eos_token_id": vocabulary["<|im_end|>"]}
        text = {**TINY_TEXT, **ends, "vocab_size": len(vocabulary), "pad_token_id": vocabulary["<|endoftext|>"]}
        config = Emu3Config(text_config=text, vq_config=dict(TINY_VQ), vocabulary_map=vocabulary)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            whole = without_branches(cls.classes()[0](config))
        return cls(whole, processor, "tiny_random", (24, 32))

    @property
    def image_vocab_size(self) -> int:
        count: int = self.whole.config.vq_config.codebook_size
        return count

    @property
    def token_size(self) -> int:
        step: int = self.processor.downsample_ratio
        return step

    def image_length(self, grid: tuple[int, int]) -> int:
        """Ends of rows count too."""
        return grid[0] * (grid[1] + 1)

    def prompt_ids(self, texts: Sequence[str], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        height, width = grid
        encoded = self.processor(
            text=list(texts),
            return_for_image_generation=True,
            ratio=f"{width}:{height}",
            image_area=height * width * self.token_size**2,
            padding=True,
            return_tensors="pt",
        )
        return encoded.input_ids, encoded.attention_mask

    def negative_prompts(
        self, input_ids: Tensor, attention_mask: Tensor, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """`negative_text` as a prompt for an image of this size, as often as there are prompts [P, L]."""
        ids, mask = self.encode_prompts([self.negative_text], size)
        return ids.repeat(len(input_ids), 1), mask.repeat(len(input_ids), 1)

    def vq_decode(self, tokens: Tensor) -> Tensor:
        pixels: Tensor = self.whole.model.vqmodel.decode(tokens)
        return pixels

    def vq_encode(self, pixels: Tensor) -> Tensor:
        sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
        return torch.stack(self.whole.model.vqmodel.encode(pixels, sizes).image_tokens)


def _tiny_processor() -> Any:
    from transformers import Emu3ImageProcessor, Emu3Processor, PreTrainedTokenizerFast

    from xomni_rl.stack.text import train_text_tokenizer

    visual = [f"<|visual token {i:06d}|>" for i in range(TINY_CODEBOOK)]
    names = {"image_token": "<image>", "boi_token": BEGIN, "eoi_token": "<|image end|>"}
    names |= {"image_wrapper_token": OPEN, "eof_token": "<|extra_201|>"}
    specials = [*visual, END_OF_ROW, *names.values()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_text_tokenizer(["a red sign"], 384, 0, specials).backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens=names,
    )
    return Emu3Processor(Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3), tokenizer)
