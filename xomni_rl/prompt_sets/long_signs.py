"""The embedded domain, larger: signs of five sizes with one to three lines of words, set from the upper left like a page.

Words are 2 to 4 of the 32 letters and digits of `signs`, in letters of the same size, so that the embedded image tokenizer and
decoder know them. A word's hash decides whether it is held out: held-out prompts have held-out words alone, training ones
none, whatever the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from xomni_rl.prompts import Prompt, prompt_sets
from xomni_rl.registry import unknown_name

from .signs import ALPHABET, COLOURS, FONT_SIZE, PITCH, is_heldout, sign_font

SIZES: dict[str, tuple[int, int]] = {
    "small": (32, 96),
    "long": (32, 192),
    "square": (96, 96),
    "wide": (64, 192),
    "large": (96, 160),
}
"""What a prompt calls a size → (height, width) px."""
LINE_HEIGHT = 32
"""Pixels from one line to the next."""
MARGIN = 8
"""Pixels left of the first letter's cell."""
WORD_LENGTHS = (2, 3, 4)
ENDS_EARLY = 0.2
"""Chance that a line ends after a word though another one would fit."""
COUNTS = ("one line", "two lines", "three lines")
TEMPLATES = (
    "a {size} {colour} sign that says {lines}",
    "a {size} {colour} sign with the text {lines}",
    "{lines} written on a {size} {colour} sign",
    "a {size} {colour} sign with {count}: {lines}",
)


@dataclass(frozen=True)
class LongSign:
    """What stands on a sign, and how the prompt says it.

    Attributes:
        lines: one to three lines of words.
        colour: a key of `COLOURS`.
        size: a key of `SIZES`.
        template: one of `TEMPLATES`.
    """

    lines: tuple[str, ...]
    colour: str
    size: str
    template: str

    @property
    def text(self) -> str:
        """All of it, in reading order."""
        return " ".join(self.lines)

    def request(self) -> str:
        """The prompt's text."""
        quoted = " over ".join(f'"{line}"' for line in self.lines)
        return self.template.format(size=self.size, colour=self.colour, lines=quoted, count=COUNTS[len(self.lines) - 1])

    def prompt(self, prompt_id: str) -> Prompt:
        """The prompt, with the facts that rewards may check: each line's text, the ground's colour, the number of lines."""
        return Prompt(
            id=prompt_id,
            text=self.request(),
            texts=self.lines,
            checks=(
                {"kind": "background", "colour": self.colour, "rgb": COLOURS[self.colour]},
                {"kind": "lines", "count": len(self.lines)},
            ),
            size=SIZES[self.size],
        )


def line_capacity(size: str) -> int:
    """Characters that a line of such a sign has room for, spaces included."""
    return (SIZES[size][1] - MARGIN) // PITCH


def draw_sign(rng: np.random.Generator, size: str, *, heldout: bool) -> LongSign:
    """A sign of one split: number of lines, words, colour and template uniformly drawn.

    Args:
        rng: where the choices come from.
        size: a key of `SIZES`.
        heldout: the split; every word belongs to it.
    """
    count = int(rng.integers(1, SIZES[size][0] // LINE_HEIGHT + 1))
    lines = tuple(_draw_line(rng, line_capacity(size), heldout) for _ in range(count))
    colour, template = str(rng.choice(list(COLOURS))), str(rng.choice(TEMPLATES))
    return LongSign(lines, colour, size, template)


def _draw_line(rng: np.random.Generator, room: int, heldout: bool) -> str:
    words: list[str] = []
    while room >= WORD_LENGTHS[0] and (not words or rng.random() >= ENDS_EARLY):
        words.append(_draw_word(rng, int(rng.integers(WORD_LENGTHS[0], min(WORD_LENGTHS[-1], room) + 1)), heldout))
        room -= len(words[-1]) + 1
    return " ".join(words)


def _draw_word(rng: np.random.Generator, length: int, heldout: bool) -> str:
    while True:
        word = "".join(ALPHABET[i] for i in rng.integers(len(ALPHABET), size=length))
        if is_heldout(word) == heldout:
            return word


def render_long_sign(sign: LongSign) -> np.ndarray:
    """Draws a sign: white letters, one each `PITCH` px, lines each `LINE_HEIGHT` px.

    Returns: uint8 [H, W, 3] of the sign's size.
    """
    height, width = SIZES[sign.size]
    image = Image.new("RGB", (width, height), COLOURS[sign.colour])
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(sign.lines):
        for column, letter in enumerate(line):
            place = (MARGIN + PITCH // 2 + column * PITCH, LINE_HEIGHT // 2 + row * LINE_HEIGHT)
            draw.text(place, letter, font=sign_font(FONT_SIZE), fill="white", anchor="mm")
    return np.asarray(image)


@prompt_sets.register("long_signs")
def long_signs(
    split: str = "train", count: int = 256, seed: int = 0, sizes: Sequence[str] = tuple(SIZES), **options: Any
) -> list[Prompt]:
    """Signs of five sizes with up to three lines of words; held-out words never occur in training.

    Args:
        split: "train" or "heldout".
        count: how many prompts.
        seed: which ones.
        sizes: names of the sizes to draw from, uniformly.
    Raises: ValueError for another split or size, sizes that are no list, or an unknown option.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', not {split!r}")
    if options:
        raise ValueError(f"the prompt set 'long_signs' has no option {', '.join(sorted(options))}")
    if not isinstance(sizes, list | tuple):
        raise ValueError(f"sizes must be a list of names, such as [long, wide], got {sizes!r}")
    names = list(sizes)
    for name in names or [""]:
        if name not in SIZES:
            raise ValueError(unknown_name("size", name, SIZES))
    rng = np.random.default_rng([seed, split == "heldout"])
    drawn = [draw_sign(rng, names[i], heldout=split == "heldout") for i in rng.integers(len(names), size=count)]
    return [sign.prompt(f"long-signs-{split}-{seed}-{i:05d}") for i, sign in enumerate(drawn)]
