"""Batches of signs for pre-training; a batch depends on (seed, stage, step) alone, so that a resumed run sees the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from xomni_rl.prompt_sets.long_signs import LongSign, draw_sign, render_long_sign
from xomni_rl.prompt_sets.signs import COLOURS, TEMPLATES, glyph_columns, random_strings, render_sign


class Signs(Protocol):
    """What the autoregressive model learns from: N rendered signs of one size, uint8 [N, H, W, 3], and what they show."""

    @property
    def images(self) -> np.ndarray: ...
    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def colours(self) -> Sequence[str]: ...
    def prompts(self) -> list[str]: ...


@dataclass(frozen=True)
class SignBatch:
    """Rendered signs and what they show.

    Attributes:
        images: uint8 [N, 32, 96, 3].
        texts: N strings.
        colours: N names.
        templates: N prompt templates.
    """

    images: np.ndarray
    texts: list[str]
    colours: list[str]
    templates: list[str]

    def prompts(self) -> list[str]:
        return [
            template.format(colour=colour, text=text)
            for template, colour, text in zip(self.templates, self.colours, self.texts, strict=True)
        ]


@dataclass(frozen=True)
class LongSignBatch:
    """Rendered long signs of one size and what they show.

    Attributes:
        images: uint8 [N, H, W, 3].
        signs: N of them.
    """

    images: np.ndarray
    signs: list[LongSign]

    @property
    def texts(self) -> list[str]:
        return [sign.text for sign in self.signs]

    @property
    def colours(self) -> list[str]:
        return [sign.colour for sign in self.signs]

    def prompts(self) -> list[str]:
        return [sign.request() for sign in self.signs]


def stream(seed: int, stage: str, step: int) -> np.random.Generator:
    """The random stream of one step of one stage."""
    return np.random.default_rng([seed, *stage.encode(), step])


def sign_batch(rng: np.random.Generator, count: int, *, heldout: bool = False, proportional: bool = False) -> SignBatch:
    """Draws and renders `count` signs of one split; `proportional` as in `render_sign`."""
    names = list(COLOURS)
    texts = random_strings(rng, count, heldout=heldout)
    colours = [names[i] for i in rng.integers(len(names), size=count)]
    templates = [TEMPLATES[i] for i in rng.integers(len(TEMPLATES), size=count)]
    images = np.stack([render_sign(t, c, rng, proportional=proportional) for t, c in zip(texts, colours, strict=True)])
    return SignBatch(images, texts, colours, templates)


def long_sign_batch(rng: np.random.Generator, size: str, count: int, *, heldout: bool = False) -> LongSignBatch:
    """Draws and renders `count` signs of one size and split."""
    signs = [draw_sign(rng, size, heldout=heldout) for _ in range(count)]
    return LongSignBatch(np.stack([render_long_sign(sign) for sign in signs]), signs)


def character_columns(texts: list[str], alphabet: str, columns: int) -> Tensor:
    """Which character covers each column of tokens.

    Returns: int64 [N, columns]; 0 = none, 1 + index into `alphabet` otherwise.
    """
    rows = []
    for text in texts:
        covered = glyph_columns(text, columns)
        rows.append([0 if i < 0 else 1 + alphabet.index(text[i]) for i in covered])
    return torch.tensor(rows)
