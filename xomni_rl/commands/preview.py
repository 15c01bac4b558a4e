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
    """Follows the tokens of one batch; `on_tokens` of `Stack.generate`.

    Args:
        stack: draws the picture.
        size: (height, width) px.
        texts: N prompts, one for each image.
        every: tokens between two pictures; 0 = no picture.
        advance: called after every token.
        show: called with a picture, uint8 [N, H, W, 3]; what is not drawn yet is grey.
    """

    def __init__(
        self,
        stack: Any,
        size: tuple[int, int] | None,
        texts: Sequence[str],
        every: int = 0,
        advance: Callable[[], None] = lambda: None,
        show: Callable[[np.ndarray], None] = lambda picture: None,
    ) -> None:
        self.stack, self.size, self.texts = stack, size, list(texts)
        self.every, self.advance, self.show = every, advance, show
        self.tokens: list[Tensor] = []

    def __call__(self, tokens: Tensor) -> None:
        self.tokens.append(tokens)
        self.advance()
        if self.every and len(self.tokens) % self.every == 0:
            self.show(self.picture())

    def picture(self) -> np.ndarray:
        """What is there so far: uint8 [N, H, W, 3]. A token that is not drawn yet is decoded as the first one, and greyed."""
        import torch

        rows, columns = self.stack.grid(self.size)
        drawn = torch.stack(self.tokens, 1)
        rest = drawn[:, :1].expand(-1, rows * columns - drawn.shape[1])
        images: np.ndarray = self.stack.decode(torch.cat([drawn, rest], 1), self.size, self.texts).copy()
        missing = (np.arange(rows * columns) >= drawn.shape[1]).reshape(rows, columns)
        height, width = images.shape[1] // rows, images.shape[2] // columns
        images[:, missing.repeat(height, 0).repeat(width, 1)] = GREY
        return images
