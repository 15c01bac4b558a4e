"""Which prompts a component is asked about: a rule such as `texts` or `language == zh and metadata.source != web`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt, quoted_spans
from xomni_rl.registry import unknown_name

KEYWORDS = ("texts", "no_texts", "checks", "no_checks")
_MISSING = object()
_COMPARISON = re.compile(r"(language|metadata(?:\.[\w-]+)+)\s*(==|!=)\s*(\"[^\"]*\"|'[^']*'|[^\s\"'=!][^\"'=!]*)")
_HELP = 'must be texts, no_texts, checks, no_checks, or read like "language == zh" or "metadata.source != web", joined by "and"'


@dataclass(frozen=True)
class Route:
    """A rule on a prompt's facts. The grammar, where VALUE is a word, or text in quotes:

        rule = clause {" and " clause}
        clause = "texts" | "no_texts" | "checks" | "no_checks" | field ("==" | "!=") VALUE
        field = "language" | "metadata.KEY" {".KEY"}

    `texts`: a text is asked for, in `Prompt.texts` or in quotes in the prompt, as the reward `ocr` sees it. Metadata that is
    no text compares as JSON writes it (3, true, null); a key that is not there equals nothing.

    Args:
        rule: as a person wrote it.
    Raises: ValueError for anything else; nothing in a rule is ever evaluated as code.

    >>> Route("language == en and texts").applies(Prompt(id="1", text='a sign that says "OPEN"'))
    True
    """

    rule: str

    def __post_init__(self) -> None:
        for clause in self._clauses():
            if clause in KEYWORDS or _COMPARISON.fullmatch(clause):
                continue
            if re.fullmatch(r"\w+", clause):
                raise ValueError(f"{unknown_name('rule', clause, KEYWORDS)}; a rule {_HELP}")
            raise ValueError(f'the rule {_HELP}, got "{self.rule}"')

    def applies(self, prompt: Prompt) -> bool:
        """Whether the prompt is routed to the component."""
        return all(_holds(clause, prompt) for clause in self._clauses())

    def indices(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """int64 [M], positions of the prompts that the rule applies to."""
        return np.array([index for index, prompt in enumerate(prompts) if self.applies(prompt)], dtype=np.int64)

    def _clauses(self) -> list[str]:
        # An "and" inside quotes belongs to the value.
        return [clause.strip() for clause in re.split(r"""\s+and\s+(?=(?:[^"']|"[^"]*"|'[^']*')*$)""", self.rule)]


def _holds(clause: str, prompt: Prompt) -> bool:
    if clause in KEYWORDS:
        wanted = clause.removeprefix("no_")
        there = bool(prompt.checks) if wanted == "checks" else bool(prompt.texts or quoted_spans(prompt.text))
        return there != clause.startswith("no_")
    match = _COMPARISON.fullmatch(clause)
    assert match is not None  # checked when the rule was made
    field, comparison, value = match.groups()
    wanted = value[1:-1] if value[0] in "\"'" else value
    return (_text(_field(prompt, field)) == wanted) == (comparison == "==")


def _field(prompt: Prompt, field: str) -> Any:
    if field == "language":
        return prompt.language
    found: Any = prompt.metadata
    for key in field.split(".")[1:]:
        found = found.get(key, _MISSING) if isinstance(found, Mapping) else _MISSING
    return found


def _text(value: Any) -> str | None:
    """A value as rules write it; None for one that is not there."""
    if value is _MISSING:
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
