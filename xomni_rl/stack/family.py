"""What the environment and the trainer ask of a generative stack, and the families of models that answer.

Nothing above this room knows more of a model than these protocols say. `docs/own_model.md` shows a family of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xomni_rl.registry import Registry

from .distribution import SamplingConfig


class TokenSampler(Protocol):
    """A model's next-token distribution after N prompts, with a cache that grows by `append`."""

    def logprobs(self) -> Tensor:
        """[N, V] float32 log-probabilities of the next image token under the distribution sampled from, nats."""

    def append(self, tokens: Tensor) -> None:
        """Adds an image token [N] int64 to every row; after the last of `num_tokens` nothing is computed any more."""


class TokenModel(Protocol):
    """The weights that are trained: a `torch.nn.Module` that predicts image tokens after prompts.

    It holds the parameters that predicting uses and no others: the trainer copies it for a reference and saves all of it.

    Attributes:
        config: of transformers; `get_text_config()` knows `hidden_size` and `max_position_embeddings`.
        num_ids: ids of a prompt are in [0, num_ids).
    """

    config: Any

    @property
    def num_ids(self) -> int: ...

    def image_features(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, group_size: int = 1) -> Tensor:
        """Hidden states that predict each image token, with gradients.

        Args:
            input_ids, attention_mask: [P, L], left padded.
            tokens: [N, T] int64 in [0, V), N = P · group_size, group-major.
            group_size: G; the prompt is computed once per group.
        Returns: [N, T, hidden_size]. Tokens that the model's format forces (ends of rows) are read but have no entry.
        """

    def image_logits(self, features: Tensor) -> Tensor:
        """Logits over the image vocabulary alone: [..., hidden_size] → [..., V]."""

    def image_sampler(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        sampling: SamplingConfig | None = None,
        *,
        group_size: int = 1,
        negative_ids: Tensor | None = None,
        negative_mask: Tensor | None = None,
    ) -> TokenSampler:
        """A sampler of `num_tokens` image tokens after each of N = P · group_size rows, group-major.

        Raises: ValueError for shapes that don't fit, or guidance without negative prompts [P, L'].
        """


class ImageStack(Protocol):
    """Prompts → image tokens → pixels.

    Attributes:
        name: where it came from, for records.
        default_size: (height, width) px of an image where nobody says.
        model: what is trained.
    """

    name: str
    default_size: tuple[int, int]
    model: Any

    @property
    def image_vocab_size(self) -> int:
        """V, how many image tokens there are."""

    @property
    def device(self) -> torch.device: ...

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> ImageStack:
        """Moves every part; returns itself."""

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Token grid (h, w) of an image of (height, width) px. Raises: StackError for a size it cannot draw."""

    def encode_prompts(self, texts: Sequence[str], size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Ids [P, L], left padded, up to where image tokens follow, and their mask. Raises: StackError."""

    def negative_prompts(
        self, input_ids: Tensor, attention_mask: Tensor, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What guidance moves away from, for each of these prompts: ids [P, L'], left padded, and their mask."""

    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None, texts: Sequence[str] | None = None) -> np.ndarray:
        """Pixels uint8 [N, H, W, 3] of tokens [N, T] or [N, h, w], and of nothing else but, with a decoder that looks at
        them, their N prompts. Raises: StackError."""

    def encode(self, images: Any) -> Tensor:
        """Tokens [N, h, w] int64 of images uint8 [N, H, W, 3]. Raises: StackError for another shape or size."""

    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of the weights, by part."""


class Family(Protocol):
    """How stacks of one kind are made; a class with these two constructors is one."""

    def from_pretrained(
        self, source: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, **options: Any
    ) -> ImageStack:
        """The stack in a folder, on a device.

        Args:
            source: the folder.
            device, dtype: of the weights.
            options: what else the family takes, the configuration's `model.options`.
        Raises: StackError naming what is missing or damaged.
        """

    def tiny_random(self, seed: int = 0) -> ImageStack:
        """The smallest stack of this kind with random weights: for tests and dry runs."""


families: Registry[Family] = Registry("model family", "xomni_rl.stack.families", "xomni_rl.families")
