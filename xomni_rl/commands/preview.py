"""How far the drawing is: a bar at a terminal, and a picture of what is there so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

GREY = 128
LEAST_TOKENS = 256
"""Images of fewer tokens are drawn in a moment: their batches are counted instead of their tokens."""


class Drawing:
    """Follows the tokens of one batch, of one size or several; `on_tokens` of `Stack.generate`.

    Args:
        stack: draws the picture.
        sizes: (height, width) px of each of N images; None = the stack's default.
        texts: N prompts.
        every: tokens between two pictures; 0 = no picture.
        advance: called after every token.
        show: called with N pictures, uint8 [H, W, 3]; what is not drawn yet is grey.
    """

    def __init__(
        self,
        stack: Any,
        sizes: Sequence[tuple[int, int] | None],
        texts: Sequence[str],
        every: int = 0,
        advance: Callable[[], None] = lambda: None,
        show: Callable[[Sequence[np.ndarray]], None] = lambda pictures: None,
    ) -> None:
        self.stack, self.texts = stack, list(texts)
        self.sizes = [tuple(size or stack.default_size) for size in sizes]
        self.every, self.advance, self.show = every, advance, show
        self.tokens: list[Tensor] = []

    def __call__(self, tokens: Tensor) -> None:
        self.tokens.append(tokens)
        self.advance()
        if self.every and len(self.tokens) % self.every == 0:
            self.show(self.pictures())

    def pictures(self) -> list[np.ndarray]:
        """What is there so far, N times uint8 [H, W, 3]."""
        import torch

        drawn = torch.stack(self.tokens, 1)
        pictures: list[np.ndarray] = [np.zeros(0)] * len(self.sizes)
        for size in dict.fromkeys(self.sizes):
            rows = [row for row, each in enumerate(self.sizes) if each == size]
            for row, picture in zip(rows, self._of_one_size(size, rows, drawn[rows]), strict=True):
                pictures[row] = picture
        return pictures

    def _of_one_size(self, size: tuple[int, int], rows: Sequence[int], drawn: Tensor) -> np.ndarray:
        """[n, H, W, 3] of tokens [n, t]. A token that is not drawn yet is decoded as the first one, and greyed."""
        import torch

        from xomni_rl.stack.sampler import PADDING

        height, width = self.stack.grid(size)
        drawn = drawn[:, drawn[0] != PADDING]  # images of one size are drawn together
        first = drawn[:, :1] if drawn.shape[1] else drawn.new_zeros(len(rows), 1)
        rest = first.expand(-1, height * width - drawn.shape[1])
        texts = [self.texts[row] for row in rows]
        images: np.ndarray = self.stack.decode(torch.cat([drawn, rest], 1), size, texts).copy()
        missing = (np.arange(height * width) >= drawn.shape[1]).reshape(height, width)
        images[:, missing.repeat(images.shape[1] // height, 0).repeat(images.shape[2] // width, 1)] = GREY
        return images
