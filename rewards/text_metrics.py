"""How close a read text is to the wanted one: pure functions on strings, without images or models.

The whole read text counts, so that extra text costs something: a page of spam that contains the target is far from it in
`edit`, `cer`, `exact`, `precision` and `f1`. `recall`, `longtext` and `published_edit` are blind to spam; they are there to
compare with published tables.
"""

import itertools
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

MAX_PERMUTED = 5
"""Up to this many targets every order is tried (120 of them); beyond it, two orders are."""

# Scripts written without spaces: kana, CJK ideographs (with extensions and compatibility forms), not Hangul.
_CJK = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_PUNCTUATION = "\u3001-\u3004\u3008-\u301f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_HAS_CJK = re.compile(rf"[{_CJK}{_CJK_PUNCTUATION}]")
# Chinese text shares quotes, dash and dots with Latin text, and NFKC makes its full-width punctuation ASCII.
_PUNCTUATION = re.escape(string.punctuation) + "\u00b7\u2014\u2018-\u201f\u2026"
_WITHOUT_LETTERS = re.compile(rf"[{_CJK}{_CJK_PUNCTUATION}{_PUNCTUATION}\s]+")
_INNER_SPACE = re.compile(r"(?<=\S)\s+(?=\S)")
# Vowel signs and accents that stand for themselves belong to the word, though `\w` leaves them out; not what picks a glyph.
_MARKS = "".join(
    chr(code)
    for code in range(0x1F000)
    if unicodedata.category(chr(code)) in ("Mn", "Mc") and code not in range(0xFE00, 0xFE10)
)
_WORD = rf"[^\W_{_CJK}](?:[^\W_{_CJK}]|[{_MARKS}])*"
_TOKEN = re.compile(rf"[{_CJK}]|{_WORD}(?:['’]{_WORD})*")

# What LongText-Bench keeps: the ideographs that Unicode 1.1 had, not their extensions; French accents, not other ones.
_LONGTEXT_DROPS = re.compile(r"[^\u4e00-\u9fa5a-zA-Z0-9\sàâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ]")

UNICODE_FORMS = ("NFKC", "NFC", "none")


def normalise_text(text: str, *, ignore_case: bool, unicode_form: str) -> str:
    """The text as it is compared: Unicode form, case, single spaces, none among CJK characters and their punctuation.

    NFKC makes full-width and half-width forms equal, which recognisers mix freely.

    Raises: ValueError for another form than NFKC, NFC or none.
    """
    if unicode_form not in UNICODE_FORMS:
        raise ValueError(f'unicode must be one of {", ".join(UNICODE_FORMS)}, got "{unicode_form}"')
    if unicode_form != "none":
        text = unicodedata.normalize(unicode_form, text)  # type: ignore[arg-type]
    if ignore_case:
        text = text.casefold()
    return _without_cjk_spaces(" ".join(text.split()))


def _without_cjk_spaces(text: str) -> str:
    """The text without the spaces of stretches of CJK characters and punctuation, which are a matter of layout.

    Which spaces go depends on no form of the punctuation, so that it is the same for a text and its parts joined.
    """
    return _WITHOUT_LETTERS.sub(lambda found: _INNER_SPACE.sub("", found[0]) if _HAS_CJK.search(found[0]) else found[0], text)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance in characters: fewest insertions, deletions and substitutions."""
    return Levenshtein.distance(a, b)


def edit_similarity(read: str, target: str) -> float:
    """1 − distance / max(len) in [0, 1]; 1 for two empty texts. Also the character accuracy of a sample."""
    longest = max(len(read), len(target))
    return 1.0 - edit_distance(read, target) / longest if longest else 1.0


def cer_similarity(read: str, target: str) -> float:
    """1 − character error rate, where CER = distance / len(target), cut at 0 because spam drives CER above 1."""
    if not target:
        return float(not read)
    return max(0.0, 1.0 - edit_distance(read, target) / len(target))


def exact_match(read: str, target: str) -> float:
    """1 if the texts are the same, else 0."""
    return float(read == target)


def tokens(text: str) -> list[str]:
    """Words without punctuation, each CJK character being a word; of a text without any, its characters."""
    return _TOKEN.findall(text) or [character for character in text if not character.isspace()]


def precision(read: str, target: str) -> float:
    """Share of the read words that were asked for (multisets), in [0, 1]; 0 if nothing was read."""
    return _overlap(read, target) / max(len(tokens(read)), 1)


def recall(read: str, target: str) -> float:
    """Share of the wanted words that were read (multisets), in [0, 1]; blind to whatever else was read."""
    return _overlap(read, target) / max(len(tokens(target)), 1)


def f1(read: str, target: str) -> float:
    """Harmonic mean of precision and recall = 2·matched / (read + wanted words), in [0, 1]."""
    return 2.0 * _overlap(read, target) / max(len(tokens(read)) + len(tokens(target)), 1)


def _overlap(read: str, target: str) -> int:
    return (Counter(tokens(read)) & Counter(tokens(target))).total()


METRICS: dict[str, Callable[[str, str], float]] = {
    "edit": edit_similarity,
    "exact": exact_match,
    "cer": cer_similarity,
    "precision": precision,
    "recall": recall,
    "f1": f1,
}


def longtext_counts(recognised: str, ground_truth: Sequence[str], language: str) -> tuple[int, int]:
    """How many of the wanted words (in Chinese: characters) were read, as LongText-Bench counts them.

    Kept are letters without accents and with the French ones, digits and common Chinese characters; everything else is
    deleted, not made a space, so "don't" is "dont". English is lower-cased and split at spaces; Chinese keeps its case and
    loses its spaces. Then multisets are compared.

    The benchmark's score of a file is the sum of `matched` over the sum of `total`: long texts weigh more. The mean of
    matched / total over samples, which is what a reward logs, is another number.

    Args:
        recognised: everything that was read in the image.
        ground_truth: the texts asked for.
        language: ISO 639-1 code of the prompt; "zh" counts characters, any other words.
    Returns: (matched, total); total is 0 if nothing of the ground truth is kept.
    Source: X-Omni's LongText-Bench, arXiv:2507.22058. Its removal of boiler-plate answers of the reading model belongs to
        the reader, not to the count.
    """
    read, wanted = (_longtext_units(text, language) for text in (recognised, " ".join(ground_truth)))
    return (read & wanted).total(), wanted.total()


def longtext_kept(text: str) -> str:
    """What LongText-Bench and OneIG-Bench compare of a text: the rest is deleted, not made a space."""
    return _LONGTEXT_DROPS.sub("", text)


def _longtext_units(text: str, language: str) -> Counter[str]:
    kept = longtext_kept(text)
    return Counter("".join(kept.split())) if language == "zh" else Counter(kept.lower().split())


def published_target(prompt: str) -> str | None:
    """The text that `published_edit` asks for: between the first two straight double quotes of the prompt, lower-cased.

    Spaces are removed; a quote that nothing closes goes to the end of the prompt. None if there is no quote or nothing in it.
    """
    parts = prompt.split('"')
    return parts[1].replace(" ", "").lower() or None if len(parts) > 1 else None


def published_edit(lines: Sequence[str], target: str) -> float:
    """1 − min(distance, len(target)) / len(target), or 1 if the target is part of what was read: for comparison only.

    This is the OCR reward that public training projects share (Flow-GRPO's and its descendants'). Known flaws: spam that
    contains the target scores 1; curly and CJK quotes and every span after the first are ignored; all lines are run
    together without spaces or case. Departs from it: a prompt without quotes has no score here, and crashes there.

    Args:
        lines: what was read, line by line.
        target: of `published_target`, not empty.
    Returns: in [0, 1].
    """
    read = "".join(lines).replace(" ", "").lower()
    if target in read:
        return 1.0
    return 1.0 - min(edit_distance(read, target), len(target)) / len(target)


def joined_target(read: str, targets: Sequence[str]) -> str:
    """The targets as one text, in the order nearest to what was read; a picture may lay its texts out in any order.

    Every order of up to `MAX_PERMUTED` targets is tried and the one with the smallest edit distance taken, the given order
    winning ties. Of more targets, two orders compete: the given one, and by where each target matches the read text best.
    """
    if len(targets) <= MAX_PERMUTED:
        orders = [list(order) for order in itertools.permutations(targets)]
    else:
        orders = [list(targets), sorted(targets, key=lambda target: _position(read, target))]
    texts = [_without_cjk_spaces(" ".join(order)) for order in orders]
    return min(texts, key=lambda text: edit_distance(read, text))


def _position(read: str, target: str) -> int:
    if len(target) > len(read):
        return 0
    alignment = fuzz.partial_ratio_alignment(target, read)
    return alignment.dest_start if alignment is not None else len(read)
