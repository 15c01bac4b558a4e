"""Which prompts of a source are used: repetitions, evaluation prompts, lengths, languages, malformed rows.

Every set that reads a source takes these as options; what is left out is counted and said in one warning.
"""

from __future__ import annotations

import hashlib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, fields, replace
from typing import Any

from xomni_rl.prompts import Prompt, PromptError, Row, is_han, script_language, usable_prompts
from xomni_rl.registry import unknown_name

NAMED = 3
"""So many of the malformed rows are named in the warning."""
_SKIP = "; mend it, or leave such rows out with prompts.options.malformed=skip"


class PromptWarning(UserWarning):
    """Prompts that were left out, or used more than once."""


class EmptySplitError(PromptError):
    """A split in which no prompt is left."""


class _Collapse(dict[int, str]):
    """Character code → the character, or a space for white space, punctuation and control characters."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = " " if unicodedata.category(character)[0] in "ZPC" else character
        return self[code]


_COLLAPSE = _Collapse()


def normal_text(text: str) -> str:
    """The text as repetitions are told by it: NFKC, case folded, white space and punctuation as single spaces.

    Spaces between Chinese characters are dropped. A text of nothing but punctuation stays as it is.

    >>> normal_text("A  Sign, that says “ＯＰＥＮ”!")
    'a sign that says open'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = folded.translate(_COLLAPSE).split()
    joined = ""
    for word in words:
        touching = joined and is_han(joined[-1]) and is_han(word[0])
        joined += word if touching or not joined else " " + word
    return joined or " ".join(folded.split())


def fingerprint(text: str) -> bytes:
    """16 bytes that are the same for texts that count as repetitions of each other."""
    return hashlib.blake2b(normal_text(text).encode("utf-8"), digest_size=16).digest()


@dataclass(frozen=True)
class Cleaning:
    """Options that every source of prompts takes.

    Args:
        deduplicate: keep the first of prompts whose normal text is the same.
        exclude: evaluation prompts that training must not see: files, {set:, options:} of a prompt set (its held-out
            split), or "heldout" for the set's own held-out prompts.
        min_characters: shortest text, in characters.
        max_characters: longest text; None = any.
        languages: languages to keep, such as ["en", "zh"]; empty = all.
        language_by: what says the language: "prompt" = its own `language`, which without one is told by the script;
            "script" = Latin letters or Chinese characters alone, which also sets the `language` of English and Chinese prompts.
        malformed: "refuse" = the first bad row is an error; "skip" = bad rows are left out.
    Raises: ValueError for a value out of range.
    """

    deduplicate: bool = True
    exclude: tuple[str | Mapping[str, Any], ...] = ()
    min_characters: int = 0
    max_characters: int | None = None
    languages: tuple[str, ...] = ()
    language_by: str = "prompt"
    malformed: str = "refuse"

    def __post_init__(self) -> None:
        for name, choices in (("language_by", ("prompt", "script")), ("malformed", ("refuse", "skip"))):
            if getattr(self, name) not in choices:
                raise ValueError(unknown_name(name, str(getattr(self, name)), choices))
        for name in ("exclude", "languages"):
            value = getattr(self, name)
            if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
                raise ValueError(f"{name} must be a list, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        if not isinstance(self.deduplicate, bool):
            raise ValueError(f"deduplicate must be true or false, got {self.deduplicate!r}")
        limits = (self.min_characters, 0 if self.max_characters is None else self.max_characters)
        if any(type(limit) is not int or limit < 0 for limit in limits):
            raise ValueError(f"min_characters and max_characters must be whole numbers from 0, got {limits}")
        if self.max_characters is not None and self.max_characters < max(self.min_characters, 1):
            raise ValueError(f"max_characters must be at least min_characters and 1, got {self.max_characters}")

    @classmethod
    def from_options(cls, owner: str, options: Mapping[str, Any], others: Iterable[str] = ()) -> Cleaning:
        """The cleaning that options of the prompt set `owner` ask for; `others` are the options it has besides.

        Raises: ValueError for an unknown option, with the nearest ones.
        """
        known = [entry.name for entry in fields(cls)]
        for key in options:
            if key not in known:
                raise ValueError(unknown_name(f'option of prompt set "{owner}":', str(key), [*known, *others]))
        return cls(**options)


class Sieve:
    """Lets prompts through that a cleaning keeps, and counts the others.

    Args:
        cleaning: what is kept.
        excluded: fingerprints of texts that are not let through.
        seen: fingerprints of texts that were let through before; grows.
    """

    def __init__(self, cleaning: Cleaning, excluded: Set[bytes] = frozenset(), seen: set[bytes] | None = None) -> None:
        self.cleaning, self.excluded = cleaning, excluded
        self.seen: set[bytes] = set() if seen is None else seen
        self.left_out: Counter[str] = Counter()
        self.malformed: list[str] = []

    def of_rows(self, rows: Iterable[Row]) -> Iterator[Prompt]:
        """The prompts of rows, not yet cleaned. Raises: PromptError for the first bad row unless they are skipped."""
        return usable_prompts(rows, self.malformed if self.cleaning.malformed == "skip" else None, _SKIP)

    def kept(self, prompts: Iterable[Prompt]) -> Iterator[Prompt]:
        """The prompts that pass, in their order."""
        for prompt in prompts:
            told = self._with_language(prompt)
            reason = self._reason_against(told)
            if reason:
                self.left_out[reason] += 1
            else:
                yield told

    def _with_language(self, prompt: Prompt) -> Prompt:
        if self.cleaning.language_by == "prompt":
            return prompt
        language = script_language(prompt.text)
        return prompt if language in ("other", prompt.language) else replace(prompt, language=language)

    def _reason_against(self, prompt: Prompt) -> str:
        cleaning, length = self.cleaning, len(prompt.text)
        if length < cleaning.min_characters:
            return "too short"
        if cleaning.max_characters is not None and length > cleaning.max_characters:
            return "too long"
        if cleaning.languages and (reason := self._against_language(prompt)):
            return reason
        mark = fingerprint(prompt.text)
        if mark in self.excluded:
            return "used for evaluation"
        if cleaning.deduplicate and mark in self.seen:
            return "repeated"
        self.seen.add(mark)
        return ""

    def _against_language(self, prompt: Prompt) -> str:
        script, wanted = script_language(prompt.text), self.cleaning.languages
        if (script if self.cleaning.language_by == "script" else prompt.language) in wanted:
            return ""
        if script == "zh" and script in wanted:
            return f"in Chinese characters with language {prompt.language} (kept with prompts.options.language_by=script)"
        return "in another language"

    def account(self) -> str:
        """What was left out, in words; empty if nothing was."""
        counts = [f"{count} {reason}" for reason, count in self.left_out.items()]
        if self.malformed:
            more = "; …" if len(self.malformed) > NAMED else ""
            counts.append(f"{len(self.malformed)} malformed ({'; '.join(self.malformed[:NAMED])}{more})")
        return ", ".join(counts)

    def report(self, name: str, split: str, used: int, remedy: str) -> None:
        """One warning that says what was left out.

        Raises: EmptySplitError if no prompt is left.
        """
        account = self.account()
        if not used:
            why = f" ({account})" if account else ""
            raise EmptySplitError(f"{name}: there are no prompts for the split {split}{why}; {remedy}")
        if account:
            warnings.warn(f"{name}: left out of the split {split}: {account}", PromptWarning, stacklevel=2)
