"""The embedded domain: 32×96 signs, a coloured background with a short string in white.

Strings are four of 32 letters and digits (without I, O, 0 and 1, which no reader could tell apart). A string's hash decides
whether it is held out, so that training can never see a held-out string, whatever the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xomni_rl.prompts import Prompt, prompt_sets

ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
LENGTH = 4
SIZE = (32, 96)
FONT_SIZE = 30
PITCH = 20
"""Pixels from one letter to the next."""
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (190, 30, 40),
    "blue": (30, 60, 180),
    "green": (20, 120, 50),
    "purple": (110, 40, 150),
    "orange": (205, 95, 10),
    "teal": (10, 115, 125),
    "brown": (105, 65, 35),
    "black": (20, 20, 25),
}
TEMPLATES = (
    'a {colour} sign that says "{text}"',
    'a {colour} sign with the text "{text}"',
    '"{text}" written on a {colour} sign',
    'the word "{text}" in white on {colour}',
)
HELDOUT_SHARE = 16
"""One string in this many is held out."""


def is_heldout(text: str) -> bool:
    """Whether a string belongs to the held-out split; depends on the string alone."""
    return hashlib.blake2b(text.encode(), digest_size=4).digest()[0] % HELDOUT_SHARE == 0


def random_strings(rng: np.random.Generator, count: int, *, heldout: bool) -> list[str]:
    """`count` strings of one split, uniformly drawn.

    Raises: ValueError for a negative count.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, not {count}")
    strings: list[str] = []
    letters = np.array(list(ALPHABET))
    while len(strings) < count:
        drawn = letters[rng.integers(len(letters), size=(2 * count + 32, LENGTH))]
        strings += [s for s in map("".join, drawn) if is_heldout(s) == heldout]
    return strings[:count]


@cache
def sign_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError(
            "Pillow was built without FreeType; install the ordinary wheel: pip install --force-reinstall pillow"
        )
    return font


def render_sign(text: str, colour: str, rng: np.random.Generator | None = None, *, proportional: bool = False) -> np.ndarray:
    """Draws a sign.

    Args:
        text: what stands on it, in white.
        colour: a key of `COLOURS`.
        rng: varies place (±1 px; proportional ±2 px across) and shade a little; None draws the plain one.
        proportional: letters as the font sets them, in three sizes, instead of one each `PITCH` px: a wider variety, which the
            image tokenizer and the decoder are trained on.
    Returns: uint8 [32, 96, 3].
    Raises: KeyError for an unknown colour.
    """
    rgb = np.array(COLOURS[colour], dtype=np.int64)
    size, dx, dy = FONT_SIZE, 0, 0
    if rng is not None:
        if proportional:
            size, dx = int(rng.integers(28, 31)), int(rng.integers(-2, 3))
        else:
            dx = int(rng.integers(-1, 2))
        dy = int(rng.integers(-1, 2))
        rgb = np.clip(rgb + rng.integers(-8, 9, size=3), 0, 255)
    image = Image.new("RGB", (SIZE[1], SIZE[0]), tuple(int(c) for c in rgb))
    draw = ImageDraw.Draw(image)
    middle = (len(text) - 1) / 2
    pieces = [(text, 0.0)] if proportional else [(letter, (i - middle) * PITCH) for i, letter in enumerate(text)]
    for piece, offset in pieces:
        place = (SIZE[1] / 2 + offset + dx, SIZE[0] / 2 + dy)
        draw.text(place, piece, font=sign_font(size), fill="white", anchor="mm")
    return np.asarray(image)


def glyph_columns(text: str, columns: int) -> np.ndarray:
    """Which character of the plain, proportional sign covers each of `columns` equal vertical strips.

    Returns: int64 [columns], an index into `text`, or -1 where the strip lies outside the text.
    """
    font = sign_font(FONT_SIZE)
    edges = [font.getlength(text[:i]) for i in range(len(text) + 1)]
    centres = (np.arange(columns) + 0.5) * SIZE[1] / columns - (SIZE[1] - edges[-1]) / 2
    index = np.searchsorted(edges, centres, side="right") - 1
    return np.where((index >= 0) & (index < len(text)), index, -1)


def sign_prompt(text: str, colour: str, template: str, prompt_id: str) -> Prompt:
    """The prompt of a sign, with the facts that rewards may check."""
    return Prompt(
        id=prompt_id,
        text=template.format(colour=colour, text=text),
        texts=(text,),
        checks=({"kind": "background", "colour": colour, "rgb": COLOURS[colour]},),
        size=SIZE,
    )


@prompt_sets.register("signs")
def signs(split: str = "train", count: int = 256, seed: int = 0, **options: Any) -> list[Prompt]:
    """Coloured signs with four letters or digits; held-out strings never occur in training.

    Args:
        split: "train" or "heldout".
        count: how many prompts.
        seed: which ones.
    Raises: ValueError for another split or an unknown option.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', not {split!r}")
    if options:
        raise ValueError(f"the prompt set 'signs' has no option {', '.join(sorted(options))}")
    rng = np.random.default_rng([seed, split == "heldout"])
    strings = random_strings(rng, count, heldout=split == "heldout")
    colours = _choices(rng, tuple(COLOURS), count)
    templates = _choices(rng, TEMPLATES, count)
    return [
        sign_prompt(s, c, t, f"signs-{split}-{seed}-{i:05d}")
        for i, (s, c, t) in enumerate(zip(strings, colours, templates, strict=True))
    ]


def _choices(rng: np.random.Generator, values: Sequence[str], count: int) -> list[str]:
    return [values[i] for i in rng.integers(len(values), size=count)]
