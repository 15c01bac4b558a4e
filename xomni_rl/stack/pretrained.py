"""A stack around one model of transformers that brings its tokenizer, its processor and its own VQ decoder."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from xomni_rl.prompts import Prompt

from .cached import CachedTokenModel
from .generation import Generation, check_room, generate
from .image_tokenizer import to_pixels
from .sampler import SamplingConfig
from .stack_folder import StackError, weight_hash

DECODED_AT_ONCE = 32
"""Images in one pass of a VQ decoder, so that a step's images don't all have their activations in memory."""


class PretrainedStack(ABC):
    """`xomni_rl.stack.family.ImageStack` in all but what a family itself must say.

    Args:
        whole: the model as transformers loads it, its VQ model included.
        processor: of transformers; its tokenizer makes the prompts' ids.
        name: where it came from, for records.
        default_size: (height, width) px of an image where nobody says.
    """

    kind: ClassVar[str]
    """What a person calls the family."""

    def __init__(self, whole: Any, processor: Any, name: str, default_size: tuple[int, int]) -> None:
        self.whole = whole.eval()
        self.processor = processor
        self.name, self.default_size = name, default_size
        self.vq: nn.Module = whole.model.vqmodel.requires_grad_(False)
        self.model = self.token_model(whole).eval()

    @staticmethod
    @abstractmethod
    def classes() -> tuple[Any, Any]:
        """transformers' classes of model and processor; imported here, so that listing families stays quick."""

    @staticmethod
    @abstractmethod
    def token_model(whole: Any) -> CachedTokenModel:
        """The part that is trained; it shares its weights with `whole`."""

    @property
    @abstractmethod
    def image_vocab_size(self) -> int:
        """V, how many image tokens there are."""

    @property
    @abstractmethod
    def token_size(self) -> int:
        """Pixels per token, along each side."""

    @abstractmethod
    def prompt_ids(self, texts: Sequence[str], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Ids [P, L], left padded, up to where image tokens follow, and their mask."""

    @abstractmethod
    def negative_prompts(
        self, input_ids: Tensor, attention_mask: Tensor, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What guidance moves away from, for prompts [P, L]."""

    @abstractmethod
    def vq_decode(self, tokens: Tensor) -> Tensor:
        """Pixels [N, 3, H, W], about -1 to 1, of tokens [N, h, w], by the model's own decoder."""

    @abstractmethod
    def vq_encode(self, pixels: Tensor) -> Tensor:
        """Tokens [N, h, w] of pixels [N, 3, H, W] in [-1, 1], by the model's own encoder."""

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Loads a folder in transformers' layout: the published checkpoint, or what `save_pretrained` wrote.

        Raises: StackError naming the folder and what is wrong; nothing is downloaded, and only safetensors are read.
        """
        folder = Path(source)
        if not (folder / "config.json").exists():
            raise StackError(f"no {cls.kind} model at {folder}: give a folder with config.json and model.safetensors")
        model_class, processor_class = cls.classes()
        try:
            whole = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype)
            processor = processor_class.from_pretrained(folder, local_files_only=True)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StackError(f"{folder} can't be loaded as {cls.kind}, a file is missing or damaged: {first}") from error
        return cls(whole, processor, str(folder), cls.size_of(folder, whole)).to(device, dtype)

    @classmethod
    @abstractmethod
    def size_of(cls, folder: Path, whole: Any) -> tuple[int, int]:
        """Default size (height, width) px of the model in a folder."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes everything `from_pretrained` needs, as safetensors and JSON."""
        self.whole.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        (Path(folder) / "stack.json").write_text(json.dumps({"default_size": list(self.default_size)}) + "\n")

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Self:
        """Moves every part; returns itself."""
        for part in (self.whole, self.model):
            part.to(device=device, dtype=dtype)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of each part's tensors, by part."""
        return {"autoregressive": weight_hash(self.model), "decoder": weight_hash(self.vq)}

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Token grid (h, w) of an image of (height, width) px. Raises: StackError for a size it cannot draw."""
        height, width = size or self.default_size
        step = self.token_size
        if height < step or width < step or height % step or width % step:
            raise StackError(f"image size {height}x{width} is no multiple of the token size {step} px")
        return height // step, width // step

    def encode_prompts(self, texts: Sequence[str], size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Image prompts as ids [P, L], left padded, and their mask.

        Raises: StackError for no prompts, a bad size, a special token inside a prompt, or a context longer than the model's.
        """
        grid = self.grid(size)
        if not texts:
            raise StackError("no prompts given")
        for text in texts:
            if "<" in text and (found := [token for token in self._marks if token in text]):
                raise StackError(f'the prompt "{text[:60]}" holds {found[0]}, which {self.kind} would not read as text')
        ids, mask = self.prompt_ids(texts, grid)
        positions = self.model.config.get_text_config().max_position_embeddings
        check_room(texts, mask.sum(1).tolist(), grid, self.image_length(grid), positions)
        return ids.to(self.device), mask.to(self.device)

    @cached_property
    def _marks(self) -> list[str]:
        """The tokenizer's tokens that are no text: what begins an image, a turn, …."""
        added = self.processor.tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if token.content.startswith("<") and len(token.content) > 1]

    def image_length(self, grid: tuple[int, int]) -> int:
        """How many positions an image takes."""
        return grid[0] * grid[1]

    def generate(
        self,
        prompts: Sequence[str | Prompt],
        *,
        size: tuple[int, int] | None = None,
        group_size: int = 1,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        on_tokens: Callable[[Tensor], None] | None = None,
    ) -> Generation:
        """Generates `group_size` images for each prompt, group-major; arguments as `Stack.generate` has them."""
        return generate(self, prompts, size=size, group_size=group_size, seed=seed, sampling=sampling, on_tokens=on_tokens)

    @torch.no_grad()
    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None, texts: Sequence[str] | None = None) -> np.ndarray:
        """Pixels uint8 [N, H, W, 3] of tokens [N, T] or [N, h, w], by the model's own VQ decoder, which sees no texts.

        Pixels from -1 to 1 become 0 to 255, cut off and rounded down, as transformers' processors do it.

        Raises: StackError if T doesn't fill the grid or a token is outside the codebook.
        """
        height, width = self.grid(size) if tokens.dim() == 2 else tokens.shape[1:]
        if tokens.dim() == 2 and tokens.shape[1] != height * width:
            raise StackError(f"{tokens.shape[1]} tokens don't fill an image of {height}x{width} tokens")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.image_vocab_size:
            raise StackError(f"image tokens must be 0 to {self.image_vocab_size - 1}")
        parts = tokens.to(self.device).view(-1, height, width).split(DECODED_AT_ONCE)
        pixels = torch.cat([self.vq_decode(part).float() for part in parts])
        return ((pixels + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    @torch.no_grad()
    def encode(self, images: Any) -> Tensor:
        """Tokens of images: uint8 [N, H, W, 3] → [N, h, w] int64. Raises: StackError for another shape or size."""
        try:
            pixels = to_pixels(images, self.device, next(self.vq.parameters()).dtype)
        except ValueError as error:
            raise StackError(str(error)) from error
        self.grid((pixels.shape[-2], pixels.shape[-1]))
        return self.vq_encode(pixels)


def without_branches(whole: Any) -> Any:
    """A model whose VQ model's residual branches are switched off, for random weights: else a cell is of no token's making."""
    for name, module in whole.model.vqmodel.named_modules():
        if name.rpartition(".")[2] in ("conv2", "proj_out", "out_proj"):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    return whole
