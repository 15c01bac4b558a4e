"""Yes-or-no questions about the facts that a prompt states, for a judge that looks at the image."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from xomni_rl.prompts import Prompt, quoted_spans
from xomni_rl.rewards.base import RewardUnavailableError

PLACEHOLDERS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "text": ("text",),
    "background": ("colour",),
    "class": ("class",),
    "count": ("class", "count"),
    "colour": ("class", "colour"),
    "position": ("class", "relation", "other"),
}
"""What each kind of question asks about; every kind stands in the file of questions with these placeholders."""


class FactError(ValueError):
    """A check of a prompt that cannot be read."""


@dataclass(frozen=True)
class Question:
    """One question about an image.

    Args:
        kind: a key of `PLACEHOLDERS`.
        text: the words put to the judge.
    """

    kind: str
    text: str


@lru_cache(maxsize=32)
def read_questions(reward: str, path: Path) -> Mapping[str, str]:
    """Kind → question with placeholders, of a file with one "kind: question" per line; # starts a comment line.

    Raises: RewardUnavailableError for a missing file or kind, a kind that is unknown or there twice, other placeholders.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RewardUnavailableError(f'reward "{reward}": the judge\'s questions cannot be read: {error}') from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        kind, _, question = (part.strip() for part in line.partition(":"))
        expected = PLACEHOLDERS.get(kind)
        if expected is None or kind in found or _placeholders(question) != set(expected):
            wanted = f"with {{{'}, {'.join(expected)}}}, once" if expected else f"of {', '.join(PLACEHOLDERS)}"
            raise RewardUnavailableError(f'reward "{reward}": {path}:{number}: expected "kind: question" {wanted}')
        found[kind] = question
    missing = [kind for kind in PLACEHOLDERS if kind not in found]
    if missing:
        raise RewardUnavailableError(f'reward "{reward}": {path} lacks the question "{missing[0]}"')
    return found


def _placeholders(question: str) -> set[str] | None:
    """None if the braces cannot be read."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(question) if name is not None}
    except ValueError:
        return None


def prompt_question(prompt: Prompt, questions: Mapping[str, str]) -> Question:
    """Whether the image shows all that the prompt says."""
    return Question("prompt", questions["prompt"].format(prompt=prompt.text))


def fact_questions(prompt: Prompt, questions: Mapping[str, str]) -> tuple[list[Question], list[Mapping[str, Any]]]:
    """One question per fact, without repetitions, and the checks that state nothing to ask about.

    Facts are the `texts` (else the quoted spans of the prompt), and in each of the `checks`: the colour of the background
    ({"kind": "background", "colour"}), or a class, its number, its colour and its position in GenEval's form ({"class",
    "count", "color", "position": ["left of", index]}, where the index counts the checks of a class that are not excluded, as
    in `rules`; the position may also be words: "left of the cat"). What is excluded ({"class", "exclude": true}) is to be
    there 0 times; "fewer than 3" is no question of its own, because of "2" it is asked whether it is exactly 2.

    Raises: FactError for a check whose values are of another form.
    """
    found = [Question("text", questions["text"].format(text=text)) for text in prompt.texts or quoted_spans(prompt.text)]
    skipped = []
    for index, check in enumerate(prompt.checks):
        facts = list(_facts(prompt, index, check))
        found += [Question(kind, questions[kind].format(**values)) for kind, values in facts]
        if not facts:
            skipped.append(check)
    return list(dict.fromkeys(found)), skipped


def _facts(prompt: Prompt, index: int, check: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(kind, values) of one check."""
    colour = _words(index, check, "colour" if "colour" in check else "color")
    if check.get("kind") == "background":
        if colour is not None:
            yield "background", {"colour": colour}
        return
    name = _words(index, check, "class")
    if name is None:
        return
    count = check.get("count")
    if count is not None and (type(count) is not int or count < 0):
        raise FactError(f"check {index}: count must be a whole number of at least 0, got {count!r}")
    if _is_excluded(index, check):
        if count in (None, 1):
            yield "count", {"class": name, "count": 0}
        return
    # GenEval states 1 where it means "some".
    yield ("class", {"class": name}) if count in (None, 1) else ("count", {"class": name, "count": count})
    if colour is not None:
        yield "colour", {"class": name, "colour": colour}
    if check.get("position") is not None:
        relation, other = _position(prompt, index, check["position"])
        yield "position", {"class": name, "relation": relation, "other": other}


def _is_excluded(index: int, check: Mapping[str, Any]) -> bool:
    excluded = check.get("exclude", False)
    if not isinstance(excluded, bool):
        raise FactError(f"check {index}: exclude must be true or false, got {excluded!r}")
    return excluded


def _words(index: int, check: Mapping[str, Any], key: str) -> str | None:
    value = check.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise FactError(f"check {index}: {key} must be words, got {value!r}")
    return value


def _position(prompt: Prompt, index: int, position: Any) -> tuple[str, str]:
    """("left of", "cat")."""
    if isinstance(position, str) and position.strip():
        before, of, after = position.partition(" of ")
        return (f"{before}{of}".strip(), after) if after else ("at this place", position)
    relation: Any = None
    other: Any = None
    if isinstance(position, Sequence) and len(position) == 2:
        relation, target = position
        shown = [place for place, check in enumerate(prompt.checks) if "class" in check and not check.get("exclude")]
        place = shown[target] if type(target) is int and 0 <= target < len(shown) else index
        other = None if place == index else prompt.checks[place]["class"]
    if not isinstance(relation, str) or not isinstance(other, str):
        raise FactError(
            f'check {index}: position must be like ["left of", 0], in which 0 is the index of another check with a class, '
            f"got {position!r}"
        )
    return relation, other
