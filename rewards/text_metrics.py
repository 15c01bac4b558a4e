"""How close a read text is to the wanted one: pure functions on strings, without images or models.

The whole read text counts, so that extra text costs something: a page of spam that contains the target is far from it in
`edit`, `cer`, `exact`, `precision` and `f1`. Only `recall` is blind to spam; it is there to compare with published tables.
"""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

MAX_PERMUTED = 5
"""Up to this many targets every order is tried (120 of them); beyond it, two orders are."""

# Scripts written without spaces: kana, CJK ideographs (with extensions and compatibility forms), not Hangul.
_CJK = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_PUNCTUATION = "\u3001-\u3004\u3008-\u301f\uff01-\uff0f\uff1a-\uff20"
_SPACE_BESIDE_CJK = re.compile(rf"(?<=[{_CJK}{_CJK_PUNCTUATION}])\s+(?=[{_CJK}{_CJK_PUNCTUATION}])")
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+(?:['’][^\W_{_CJK}]+)*")

UNICODE_FORMS = ("NFKC", "NFC", "none")


def normalise_text(text: str, *, ignore_case: bool, unicode_form: str) -> str:
    """The text as it is compared: Unicode form, case, single spaces, no space between CJK characters.

    NFKC makes full-width and half-width forms equal, which recognisers mix freely.

    Raises: ValueError for another form than NFKC, NFC or none.
    """
    if unicode_form not in UNICODE_FORMS:
        raise ValueError(f'unicode must be one of {", ".join(UNICODE_FORMS)}, got "{unicode_form}"')
    if unicode_form != "none":
        text = unicodedata.normalize(unicode_form, text)  # type: ignore[arg-type]
    if ignore_case:
        text = text.casefold()
    return _SPACE_BESIDE_CJK.sub("", " ".join(text.split()))


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


def joined_target(read: str, targets: Sequence[str]) -> str:
    """The targets as one text, in the order nearest to what was read; a picture may lay its texts out in any order.

    Every order of up to `MAX_PERMUTED` targets is tried and the one with the smallest edit distance taken, the given order
    winning ties. Of more targets, two orders compete: the given one, and by where each target matches the read text best.
    """
    if len(targets) <= MAX_PERMUTED:
        orders = [list(order) for order in itertools.permutations(targets)]
    else:
        orders = [list(targets), sorted(targets, key=lambda target: _position(read, target))]
    texts = [_SPACE_BESIDE_CJK.sub("", " ".join(order)) for order in orders]
    return min(texts, key=lambda text: edit_distance(read, text))


def _position(read: str, target: str) -> int:
    if len(target) > len(read):
        return 0
    alignment = fuzz.partial_ratio_alignment(target, read)
    return alignment.dest_start if alignment is not None else len(read)
