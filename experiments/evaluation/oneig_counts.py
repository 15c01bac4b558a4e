"""OneIG-Bench's arithmetic of texts, as published and repaired: what one image counts, and the score of all of them.

`published` is the arithmetic of the public script. Its faults, and what `fixed` does instead:

- Punctuation is deleted, which joins the words at its sides; letters other than unaccented and French ones and the first 20,902
  ideographs are deleted too: punctuation becomes a space, but for apostrophes inside a word, and all letters, marks and
  digits of Unicode are kept, after NFKC.
- A single ideograph among what was read takes the spaces out of an English reading, so that none of its words is found: the
  file's language decides.
- The texts count as one, in the order of the file, so that a page with another layout is far from it: the order that is nearest
  to what was read counts.
- The list is compared as Python writes it, so that an escaped character leaves letters behind ("\\xa0" is "xa0"): it is read.
- What a model says when it sees no text is deleted wherever it stands, but not without its full stop: a line that says only
  this is left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xomni_rl.experiments.evaluation.longtext_counts import check_choices
from xomni_rl.rewards.text_metrics import edit_distance, joined_target, longtext_kept

MOST_EDITS = {"en": 100, "zh": 50}
"""Mean edit distance from which on it weighs fully, in characters."""
BOILERPLATE = ("addCriterion", "No text recognized.")
"""What the published reading model adds of its own."""
_HAN = re.compile("[\u4e00-\u9fff]")
_APOSTROPHE = re.compile(r"(?<=\w)['’ʼ](?=\w)")
_SAID_ALONE = re.compile(r"(?:addCriterion|No text recognized)\.?")


class TextCounts(NamedTuple):
    """Of one image: edit distance in characters; words (in Chinese: characters) in both texts; those wanted."""

    distance: int
    matched: int
    total: int


def text_counts(read: str, cell: str, texts: Sequence[str], language: str, compat: str) -> TextCounts:
    """What OneIG-Bench counts in one image.

    Args:
        read: everything that was read.
        cell: the wanted texts as their file writes them: "['a text', 'another']".
        texts: the wanted texts.
        language: en or zh, of the file.
        compat: published or fixed.
    Raises: EvaluationError for another language or compat.
    """
    check_choices(language, compat)
    if compat == "published":
        for phrase in BOILERPLATE:
            read = read.replace(phrase, "")
        read, wanted = _published(read), _published(cell)
        by_character = bool(_HAN.search(wanted))
    else:
        read = _fixed("\n".join(line for line in read.splitlines() if not _SAID_ALONE.fullmatch(line.strip())), language)
        wanted = _fixed(joined_target(read, [_fixed(text, language) for text in texts]), language)
        by_character = language == "zh"
    there, asked = (Counter(text if by_character else text.split()) for text in (read, wanted))
    return TextCounts(edit_distance(read, wanted), (there & asked).total(), asked.total())


def text_score(distance: Any, completion: Any, words: Any, language: str) -> Any:
    """1 − min(ED, M)·(1 − CR)·(1 − WAC) / M, in [0, 1].

    Args:
        distance: mean edit distance ED of the images, in characters.
        completion: share CR of images without a difference.
        words: WAC, Σ matched / Σ total over the images.
        language: decides M, see `MOST_EDITS`.
    Source: arXiv:2506.07977 and its public script.
    """
    most = MOST_EDITS[language]
    return 1 - np.minimum(distance, most) * (1 - completion) * (1 - words) / most


def _published(text: str) -> str:
    """Words at single spaces, or without any space where an ideograph is among them."""
    words = longtext_kept(text).split()
    return ("" if _HAN.search("".join(words)) else " ").join(words)


def _fixed(text: str, language: str) -> str:
    text = _APOSTROPHE.sub("", unicodedata.normalize("NFKC", text))
    kept = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text)
    return ("" if language == "zh" else " ").join(kept.split())
