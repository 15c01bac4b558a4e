"""Text-rendering prompts made up in English and Chinese: strings on posters, signs, covers, notes.

A string is held out if it has a held-out atom: in English a word or two words in a row, in Chinese two characters in a row,
each held out by its hash. Training strings have none, so no held-out string occurs in training, not even inside a longer one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from random import Random

from xomni_rl.prompt_sets import rendering_words as vocabulary
from xomni_rl.prompt_sets.shares import whole_shares
from xomni_rl.prompt_sets.splitting import check_split
from xomni_rl.prompts import Prompt, prompt_sets
from xomni_rl.registry import unknown_name

HELDOUT_SHARE = 16
"""One atom in this many is held out."""
CASES: tuple[Callable[[str], str], ...] = (str.upper, str.title, str.capitalize)
_CLASSES = {"A": vocabulary.ENGLISH_ADJECTIVES, "N": vocabulary.ENGLISH_NOUNS, "V": vocabulary.ENGLISH_VERBS}
_FUNCTION_WORDS = frozenset({"a", "and", "for", "of", "the"})


@dataclass(frozen=True)
class Language:
    """How prompts of a language are put together.

    Args:
        scenes: name → sentence with a place for the first string.
        more: where a further string stands.
        marks: quotation marks around a string.
        comma: between the parts of a sentence.
        string: (rng, length, heldout) → a string of that split.
    """

    scenes: Mapping[str, str]
    more: tuple[str, ...]
    marks: str
    comma: str
    string: Callable[[Random, int, bool], str]


@dataclass(frozen=True)
class Recipe:
    """What the options say, checked.

    Args:
        scenes: names.
        strings: least and most strings in a picture.
        lengths: language → least and most words or characters of a string.
        size: (height, width) in px, or None.
    """

    scenes: tuple[str, ...]
    strings: tuple[int, int]
    lengths: Mapping[str, tuple[int, int]]
    size: tuple[int, int] | None


def is_heldout(text: str) -> bool:
    """Whether a string belongs to the held-out split; depends on its words or characters alone, not on their case."""
    return _has_heldout_atom(text.casefold().split() if text.isascii() else list(text))


def _has_heldout_atom(units: Sequence[str]) -> bool:
    """Of lower-case words or Chinese characters; a single character is no atom, nor is a function word."""
    pairs = (f"{first} {second}" for first, second in pairwise(units))
    singles = (unit for unit in units if unit.isascii() and unit not in _FUNCTION_WORDS)
    return any(map(_is_heldout_atom, (*pairs, *singles)))


@cache
def _is_heldout_atom(atom: str) -> bool:
    return hashlib.blake2b(atom.encode("utf-8"), digest_size=4).digest()[0] % HELDOUT_SHARE == 0


def english_string(rng: Random, length: int, heldout: bool) -> str:
    """A string of `length` words of one split: all capitals, one for each word, or one."""
    lengths = _pieces(rng, length, tuple(vocabulary.ENGLISH_PATTERNS))
    words = _joined(lengths, lambda piece: _english_piece(rng, piece), heldout)
    return rng.choice(CASES)(" ".join(words))


def chinese_string(rng: Random, length: int, heldout: bool) -> str:
    """A string of `length` characters, 2 or more, of one split."""
    lengths = _pieces(rng, length, tuple(vocabulary.CHINESE_PIECES))
    return "".join(_joined(lengths, lambda piece: list(rng.choice(vocabulary.CHINESE_PIECES[piece])), heldout))


def _english_piece(rng: Random, length: int) -> list[str]:
    pattern = rng.choice(vocabulary.ENGLISH_PATTERNS[length]).split()
    return [rng.choice(_CLASSES[slot]) if slot in _CLASSES else slot for slot in pattern]


def _pieces(rng: Random, length: int, sizes: Sequence[int]) -> list[int]:
    """Sizes that sum to `length`; what is left over is always one of the sizes or a sum of them."""
    found: list[int] = []
    while (rest := length - sum(found)) > 0:
        fitting = [size for size in sizes if rest - size >= min(sizes)]
        found.append(rest if rest in sizes else rng.choice(fitting))
    return found


def _joined(lengths: Sequence[int], piece: Callable[[int], list[str]], heldout: bool) -> list[str]:
    """Words or characters of one split: training pieces are drawn until they add no held-out atom, held-out ones as a whole."""
    while True:
        units: list[str] = []
        for length in lengths:
            drawn = piece(length)
            while not heldout and _has_heldout_atom([*units[-1:], *drawn]):
                drawn = piece(length)
            units += drawn
        if _has_heldout_atom(units) == heldout:
            return units


LANGUAGES = {
    "en": Language(vocabulary.ENGLISH_SCENES, vocabulary.ENGLISH_MORE, '""', ", ", english_string),
    "zh": Language(vocabulary.CHINESE_SCENES, vocabulary.CHINESE_MORE, "“”", "，", chinese_string),
}


@prompt_sets.register("text_rendering")
def text_rendering(
    split: str = "train",
    count: int = 256,
    seed: int = 0,
    languages: Mapping[str, float] | None = None,
    strings: Sequence[int] = (1, 3),
    words: Sequence[int] = (1, 4),
    characters: Sequence[int] = (2, 8),
    scenes: Sequence[str] | None = None,
    size: Sequence[int] | None = None,
) -> list[Prompt]:
    """Strings on posters, signs, covers and notes, in English and Chinese; held-out strings never occur in training.

    Args:
        split: "train" or "heldout".
        count: how many prompts.
        seed: which ones.
        languages: weight of each language; None = {en: 1, zh: 1}. Shares are exact.
        strings: least and most strings in a picture.
        words: least and most words of an English string.
        characters: least and most characters of a Chinese string, from 2.
        scenes: which scenes; None = all.
        size: (height, width) in px; None = the model's default.
    Raises: ValueError for another split, an unknown language or scene, or a range out of order.
    """
    check_split(split)
    if languages is not None and not isinstance(languages, Mapping):
        raise ValueError(f"languages must be weights of languages, such as {{en: 1, zh: 1}}, got {languages!r}")
    shares = whole_shares({"en": 1, "zh": 1} if languages is None else dict(languages), count)
    for language in shares:
        if language not in LANGUAGES:
            raise ValueError(unknown_name("language", str(language), LANGUAGES))
    recipe = Recipe(
        scenes=_scenes(scenes),
        strings=_bounds("strings", strings, 1),
        lengths={"en": _bounds("words", words, 1), "zh": _bounds("characters", characters, 2)},
        size=None if size is None else (size[0], size[1]),
    )
    rng = Random(f"{split} {seed}")
    order = [language for language, share in shares.items() for _ in range(share)]
    rng.shuffle(order)
    return [
        _prompt(rng, language, recipe, split == "heldout", f"text_rendering-{split}-{seed}-{number:05d}")
        for number, language in enumerate(order)
    ]


def _scenes(names: Sequence[str] | None) -> tuple[str, ...]:
    """The scenes' names, all of them for None. Raises: ValueError for none, an unknown one, or no list."""
    if isinstance(names, str):
        raise ValueError(f"scenes must be a list of names, such as [poster, mug], got {names!r}")
    chosen = tuple(vocabulary.ENGLISH_SCENES if names is None else names)
    for name in chosen or ("",):
        if name not in vocabulary.ENGLISH_SCENES:
            raise ValueError(unknown_name("scene", str(name), vocabulary.ENGLISH_SCENES))
    return chosen


def _bounds(name: str, bounds: Sequence[int], least: int) -> tuple[int, int]:
    """(least, most). Raises: ValueError for anything else."""
    good = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(type(bound) is int for bound in bounds)
    if not good or not least <= bounds[0] <= bounds[1]:
        raise ValueError(f"{name} must be [least, most] in whole numbers from {least}, got {bounds!r}")
    return bounds[0], bounds[1]


def _prompt(rng: Random, language: str, recipe: Recipe, heldout: bool, prompt_id: str) -> Prompt:
    how, scene = LANGUAGES[language], rng.choice(recipe.scenes)
    least, most = recipe.strings
    shortest, longest = recipe.lengths[language]
    texts: list[str] = []
    for _ in range(rng.randint(least, most)):
        texts.append(how.string(rng, rng.randint(shortest, longest), heldout))
    opening, closing = how.marks[0], how.marks[1]
    quoted = [f"{opening}{text}{closing}" for text in texts]
    places = rng.sample(how.more, len(how.more))
    further = [places[i % len(places)].format(text) for i, text in enumerate(quoted[1:])]
    return Prompt(
        id=prompt_id,
        text=how.comma.join([how.scenes[scene].format(quoted[0]), *further]),
        texts=tuple(texts),
        language=language,
        size=recipe.size,
        metadata={"scene": scene},
    )
