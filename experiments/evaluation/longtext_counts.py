"""LongText-Bench's count of what was read, as published and repaired, and the re-scoring of stored recognitions.

`published` is the arithmetic of the public script (`xomni_rl.rewards.text_metrics.longtext_counts`). Its faults, and what
`fixed` does instead:

- Punctuation is deleted, which joins the words at its sides ("sun—moon" is one word): it becomes a space, but for apostrophes
  inside a word.
- Letters other than unaccented and French ones and the first 20,902 ideographs are deleted ("mañana" is "maana", kana, Hangul
  and Cyrillic vanish): all letters, marks and digits of Unicode are kept.
- Full-width and half-width forms, composed and decomposed accents differ: texts are brought to NFKC first.
- Chinese keeps its case, English doesn't: neither does.
- Ideographs in English run together with the letters beside them: each is a unit of its own.
- Whatever else stands in the image is free: precision and F1 are given beside the recall.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.figures import ratio_interval
from xomni_rl.prompts import PromptError, decoded, filled_lines, json_object
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.text_metrics import longtext_counts

COMPATS = ("published", "fixed")
LANGUAGES = ("en", "zh")
_APOSTROPHE = re.compile(r"(?<=\w)['’ʼ](?=\w)")
_IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class Counts(NamedTuple):
    """Words (in Chinese: characters) of one image: in both texts, wanted, read."""

    matched: int
    total: int
    read: int


class Recognition(NamedTuple):
    """What should have been read in an image, what was, and the prompt it belongs to ("" = not stated)."""

    ground_truth: tuple[str, ...]
    recognised: str
    prompt_id: str


def counts(recognised: str, ground_truth: Sequence[str], language: str, compat: str) -> Counts:
    """What LongText-Bench counts in one image.

    Args:
        recognised: everything that was read.
        ground_truth: the texts asked for.
        language: en counts words, zh characters.
        compat: published or fixed.
    Raises: EvaluationError for another language or compat.
    """
    check_choices(language, compat)
    if compat == "published":
        matched, total = longtext_counts(recognised, ground_truth, language)
        return Counts(matched, total, longtext_counts("", [recognised], language)[1])
    read, wanted = (_units(text, language) for text in (recognised, " ".join(ground_truth)))
    return Counts((read & wanted).total(), wanted.total(), read.total())


def check_choices(language: str, compat: str) -> None:
    """Raises EvaluationError for a language or compat that there is not."""
    for name, value, known in (("language", language, LANGUAGES), ("compat", compat, COMPATS)):
        if value not in known:
            raise EvaluationError(unknown_name(name, str(value), known))


def _units(text: str, language: str) -> Counter[str]:
    """The words, or in Chinese the characters, of a text; an ideograph is a word of its own."""
    text = _APOSTROPHE.sub("", unicodedata.normalize("NFKC", text)).casefold()
    kept = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text)
    if language == "zh":
        return Counter("".join(kept.split()))
    return Counter(_IDEOGRAPH.sub(lambda found: f" {found[0]} ", kept).split())


def read_recognitions(path: Path) -> list[Recognition]:
    """The rows of a JSON-lines file with "ground_truth", a list of strings, and "recognised", a string.

    Raises: EvaluationError "file:line: reason; remedy" for the first bad row or an empty file; OSError as it comes.
    """
    found = []
    for number, raw in filled_lines(path):
        try:
            found.append(_recognition(json_object(decoded(raw))))
        except PromptError as error:
            form = '{"ground_truth": ["a text", …], "recognised": "what was read"}'
            raise EvaluationError(f"{path}:{number}: {error}; write each line as {form}") from error
    if not found:
        raise EvaluationError(f"{path}: there is no recognition in this file; write one JSON object per line")
    return found


def _recognition(record: dict[str, Any]) -> Recognition:
    for key in ("ground_truth", "recognised"):
        if key not in record:
            raise PromptError(f'the key "{key}" is missing')
    wanted, read = record["ground_truth"], record["recognised"]
    if not isinstance(wanted, list) or not wanted or not all(isinstance(text, str) for text in wanted):
        raise PromptError(f'"ground_truth" must be a list of one or more strings, got {_short(wanted)}')
    if not isinstance(read, str):
        raise PromptError(f'"recognised" must be a string, got {_short(read)}')
    prompt_id = record.get("prompt_id")
    return Recognition(tuple(wanted), read, "" if prompt_id is None else str(prompt_id))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def score_recognitions(rows: Sequence[Recognition], language: str, compat: str, seed: int = 0) -> dict[str, Any]:
    """The score over stored recognitions: Σ matched / Σ total, with its 95 % interval, rows of one prompt drawn together.

    Returns: `score`, `low`, `high`, `matched`, `total`, `rows`, `not_applicable` (nothing to count is wanted) and, fixed,
        `precision` and `f1`. A figure that there is not is None.
    Raises: EvaluationError for another language or compat.
    """
    check_choices(language, compat)
    counted = np.array([counts(row.recognised, row.ground_truth, language, compat) for row in rows], dtype=np.float64)
    wanted = counted[:, 1] > 0
    matched, total, read = np.where(wanted[:, None], counted, np.nan).T
    clusters = [row.prompt_id or f"row {index}" for index, row in enumerate(rows)]
    parts = {"score": (matched, total)}
    if compat == "fixed":
        parts |= {"precision": (matched, read), "f1": (2 * matched, total + read)}
    found: dict[str, Any] = {"suite": "longtext", "language": language, "compat": compat}
    for name, (top, bottom) in parts.items():
        mean, *ends = ratio_interval(top, bottom, clusters, seed=seed)
        found[name] = _none_for_nan(mean)
        if name == "score":
            found |= dict(zip(("low", "high"), map(_none_for_nan, ends), strict=True))
    found |= {"matched": int(np.nansum(matched)), "total": int(np.nansum(total))}
    return found | {"rows": len(rows), "not_applicable": int((~wanted).sum())}


def _none_for_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
