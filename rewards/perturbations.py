"""Pictures that are worse, wrong or bought: graded perturbations for the audit of a reward. Numpy and PIL only.

Strengths that are lengths are shares of the picture's shorter side, so that one list fits signs of 32 px and photographs.
Three kinds: `quality` (the same picture, worse), `content` (a picture of something else than what was asked for), `exploit`
(what a policy does to a picture to please a reward without doing what was asked).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from xomni_rl.prompt_sets.signs import ALPHABET, COLOURS, SIZE, render_sign

QUALITY, CONTENT, EXPLOIT = KINDS = ("quality", "content", "exploit")
GREY = 128
"""Level of the blank picture, of 255."""


@dataclass(frozen=True)
class Subject:
    """One sample to perturb.

    Args:
        image: uint8 [H, W, 3], the picture that is right.
        other: uint8 [H', W', 3], a picture of another prompt; None = there is none.
        sign: (text, colour) of an embedded sign, which can be drawn again with errors; None = it cannot.
        decoys: words that were not asked for, for spam.
    """

    image: np.ndarray
    other: np.ndarray | None = None
    sign: tuple[str, str] | None = None
    decoys: tuple[str, ...] = ()


Change = Callable[[Subject, int, np.random.Generator], np.ndarray | None]
"""(subject, grade from 1, generator) → uint8 [H, W, 3], or None if it cannot be done to this subject."""
Edit = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
"""(uint8 [H, W, 3], grade from 1, generator) → uint8 [H, W, 3] of the same size."""


@dataclass(frozen=True)
class Perturbation:
    """One way to spoil or dress up a picture.

    Args:
        name: unique.
        kind: quality, content or exploit.
        strengths: what grades 1, 2, … mean, with units, in growing severity.
        change: makes the picture; the generator is seeded alike for all grades of a subject, so that grades nest.
        needs_renderer: whether the subject must be a sign that can be drawn again.
        on_wrong: whether it is also tried on another prompt's picture: what does it buy there?
    """

    name: str
    kind: str
    strengths: tuple[str, ...]
    change: Change
    needs_renderer: bool = False
    on_wrong: bool = False

    def __call__(self, subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray | None:
        """The perturbed picture; None if it cannot be made. Raises: ValueError for a grade there isn't."""
        if not 1 <= grade <= len(self.strengths):
            raise ValueError(f"{self.name} has grades 1 to {len(self.strengths)}, not {grade}")
        if self.needs_renderer and subject.sign is None:
            return None
        return self.change(subject, grade, rng)


def perturbations(*, renderer: bool) -> list[Perturbation]:
    """All perturbations in the order of tables; without a renderer, those that any picture can undergo."""
    return [each for each in _ALL if renderer or not each.needs_renderer]


# Quality: the same picture, worse.
BLUR = (0.015, 0.03, 0.06, 0.12)
JPEG = (50, 25, 10, 5)
NOISE = (10, 20, 40, 80)
CROP = (0.9, 0.8, 0.65, 0.5)
RESCALE = (1.5, 2.0, 3.0, 4.0)
DARKEN = (0.75, 0.5, 0.25, 0.1)


def blur(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur."""
    return _filtered(image, ImageFilter.GaussianBlur(BLUR[grade - 1] * min(image.shape[:2])))


def jpeg(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Compressed by libjpeg and read back."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG", quality=JPEG[grade - 1])
    with Image.open(stream) as read:
        return np.asarray(read.convert("RGB"))


def noise(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, the same in all channels."""
    return _bytes(image + NOISE[grade - 1] * rng.standard_normal((*image.shape[:2], 1)))


def crop(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """The middle, enlarged to the whole size."""
    height, width = image.shape[:2]
    kept = [max(1, round(CROP[grade - 1] * side)) for side in (height, width)]
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    return _resized(image[top : top + kept[0], left : left + kept[1]], (height, width))


def rescale(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Made smaller and enlarged again, both bicubic."""
    height, width = image.shape[:2]
    small = max(1, round(height / RESCALE[grade - 1])), max(1, round(width / RESCALE[grade - 1]))
    return _resized(_resized(image, small), (height, width))


def darken(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Every level multiplied."""
    return _bytes(DARKEN[grade - 1] * image.astype(np.float64))


# Exploits that any picture can undergo, at one strength each.
CONTRAST, SATURATION, SHARPNESS, TEXTURE, BORDER = 2.0, 2.5, 300, 48, 0.08


def contrast(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Distances from the mean level doubled."""
    mean = image.mean()
    return _bytes(mean + CONTRAST * (image - mean))


def saturation(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Distances from each pixel's luma (Rec. 601) multiplied."""
    luma = image @ np.array([0.299, 0.587, 0.114])
    return _bytes(luma[..., None] + SATURATION * (image - luma[..., None]))


def sharpen(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Unsharp mask with a radius of 3 % of the shorter side, at least 1 px."""
    radius = max(1.0, 0.03 * min(image.shape[:2]))
    return _filtered(image, ImageFilter.UnsharpMask(radius=radius, percent=SHARPNESS, threshold=0))


def texture(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Coloured grain: uniform noise, another in each channel."""
    return _bytes(image + rng.uniform(-TEXTURE, TEXTURE, image.shape))


def border(image: np.ndarray, grade: int, rng: np.random.Generator) -> np.ndarray:
    """A white frame painted over the edge, at least 1 px wide."""
    framed = image.copy()
    width = max(1, round(BORDER * min(image.shape[:2])))
    for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        framed[edge] = 255
    return framed


# Content: a picture of something else.


def blank(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray:
    """Mid-grey all over: what the score span is measured from."""
    return np.full_like(subject.image, GREY)


def other_prompt(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray | None:
    return subject.other


def wrong_text(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray:
    """`grade` quarters of the letters replaced by others, at random places."""
    text, colour = _sign(subject)
    letters = list(text)
    places = rng.permutation(len(letters))
    others = rng.integers(1, len(ALPHABET), size=len(letters))
    for place in places[: _quarters(grade, len(letters))]:
        index = ALPHABET.find(letters[place])
        letters[place] = ALPHABET[(index + int(others[place])) % len(ALPHABET)]
    return render_sign("".join(letters), colour)


def missing_letters(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray:
    """`grade` quarters of the letters left out; the others close up."""
    text, colour = _sign(subject)
    gone = set(rng.permutation(len(text))[: _quarters(grade, len(text))].tolist())
    return render_sign("".join(letter for place, letter in enumerate(text) if place not in gone), colour)


def swapped_letters(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray | None:
    """`grade` disjoint pairs of different neighbours swapped; None if there are not that many."""
    text, colour = _sign(subject)
    letters, place, pairs = list(text), 0, 0
    while place + 1 < len(letters) and pairs < grade:
        if letters[place] != letters[place + 1]:
            letters[place : place + 2] = letters[place + 1], letters[place]
            place, pairs = place + 1, pairs + 1
        place += 1
    return render_sign("".join(letters), colour) if pairs == grade else None


def repeated_text(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray:
    """The text two or three times on one line."""
    text, colour = _sign(subject)
    return write_line(" ".join([text] * (grade + 1)), colour, SPAM[grade - 1])


def wrong_colour(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray:
    """The same text on another background."""
    text, colour = _sign(subject)
    return render_sign(text, str(rng.choice([name for name in COLOURS if name != colour])))


SPAM = (15, 11)
"""Height of the type on a line with two and three words, px."""
TINY = (15, 12, 9, 7)


def text_spam(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray | None:
    """What was asked for, then `grade` other words."""
    text, colour = _sign(subject)
    if len(subject.decoys) < grade:
        return None
    return write_line(" ".join([text, *subject.decoys[:grade]]), colour, SPAM[grade - 1])


def tiny_text(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray:
    """The right text in ever smaller type."""
    text, colour = _sign(subject)
    return write_line(text, colour, TINY[grade - 1])


def write_line(text: str, colour: str, height: int) -> np.ndarray:
    """A line of white text in the middle of a sign: uint8 [32, 96, 3].

    Args:
        colour: a key of the signs' colours.
        height: of the type, px; less if the line would be cut off.
    """
    image = Image.new("RGB", (SIZE[1], SIZE[0]), COLOURS[colour])
    middle = (SIZE[1] / 2, SIZE[0] / 2)
    while height > 1 and _font(height).getlength(text) > SIZE[1]:
        height -= 1
    ImageDraw.Draw(image).text(middle, text, font=_font(height), fill="white", anchor="mm")
    return np.asarray(image)


@cache
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)


def _sign(subject: Subject) -> tuple[str, str]:
    if subject.sign is None:
        raise ValueError("only a sign can be drawn again with errors")
    return subject.sign


def _quarters(grade: int, count: int) -> int:
    """ceil(grade / 4 · count): grade 4 is all of them, and each grade at least one."""
    return -(-grade * count // 4)


def _filtered(image: np.ndarray, kernel: ImageFilter.Filter) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(kernel))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _bytes(levels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _edit(name: str, kind: str, strengths: tuple[str, ...], edit: Edit) -> Perturbation:
    def change(subject: Subject, grade: int, rng: np.random.Generator) -> np.ndarray:
        return edit(subject.image, grade, rng)

    return Perturbation(name, kind, strengths, change, on_wrong=kind == EXPLOIT)


def _redrawn(name: str, kind: str, strengths: tuple[str, ...], change: Change) -> Perturbation:
    return Perturbation(name, kind, strengths, change, needs_renderer=True)


_QUARTERS = ("1/4 of letters", "2/4 of letters", "3/4 of letters", "all letters")
_ALL = (
    _edit("blur", QUALITY, tuple(f"σ {100 * share:g} % of the side" for share in BLUR), blur),
    _edit("jpeg", QUALITY, tuple(f"quality {quality}" for quality in JPEG), jpeg),
    _edit("noise", QUALITY, tuple(f"σ {level} of 255" for level in NOISE), noise),
    _edit("crop", QUALITY, tuple(f"{100 * share:g} % of each side" for share in CROP), crop),
    _edit("rescale", QUALITY, tuple(f"side / {factor:g}" for factor in RESCALE), rescale),
    _edit("brightness", QUALITY, tuple(f"× {factor:g}" for factor in DARKEN), darken),
    _redrawn("wrong_text", CONTENT, _QUARTERS, wrong_text),
    _redrawn("missing_letters", CONTENT, _QUARTERS, missing_letters),
    _redrawn("swapped_letters", CONTENT, ("one pair", "two pairs"), swapped_letters),
    _redrawn("repeated_text", CONTENT, ("twice", "three times"), repeated_text),
    _redrawn("wrong_colour", CONTENT, ("another colour",), wrong_colour),
    Perturbation("blank", CONTENT, ("mid-grey",), blank),
    Perturbation("other_prompt", CONTENT, ("another prompt's picture",), other_prompt),
    _redrawn("text_spam", EXPLOIT, ("one other word", "two other words"), text_spam),
    _redrawn("tiny_text", EXPLOIT, tuple(f"{height} px type" for height in TINY), tiny_text),
    _edit("contrast", EXPLOIT, (f"× {CONTRAST:g}",), contrast),
    _edit("saturation", EXPLOIT, (f"× {SATURATION:g}",), saturation),
    _edit("sharpness", EXPLOIT, (f"unsharp mask {SHARPNESS} %",), sharpen),
    _edit("texture", EXPLOIT, (f"grain ± {TEXTURE} of 255",), texture),
    _edit("border", EXPLOIT, (f"white, {100 * BORDER:g} % of the side",), border),
)
