"""Evaluation prompts that training must not see, from files and from other prompt sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from xomni_rl.prompt_sets.cleaning import fingerprint
from xomni_rl.prompt_sets.tables import FORMATS, open_table
from xomni_rl.prompts import PromptError, decoded, filled_lines, prompt_sets
from xomni_rl.registry import unknown_name

MOST_PROMPTS = 2048
"""So many held-out prompts of a set are looked at, in the order in which a run evaluates them; made-up ones have no end."""
TEXT_COLUMNS = ("text", "prompt", "caption")
"""Where a file of evaluation prompts is taken to have its texts, the first of these that is there."""


def excluded_fingerprints(exclude: Iterable[str | Mapping[str, Any]]) -> set[bytes]:
    """Fingerprints of the texts of every entry of `exclude` but "heldout".

    Raises: PromptError for a file that is missing, cannot be read or has no texts; ValueError for a bad entry.
    """
    return {fingerprint(text) for entry in exclude if entry != "heldout" for text in _texts(entry)}


def _texts(entry: str | Mapping[str, Any]) -> Iterator[str]:
    if isinstance(entry, Mapping):
        for key in entry:
            if key not in ("set", "options"):
                raise ValueError(unknown_name("key of an entry of exclude:", str(key), ("set", "options")))
        make = prompt_sets.get(str(entry.get("set")))
        options = dict(entry.get("options") or {})
        return (prompt.text for prompt in make(split="heldout", count=MOST_PROMPTS, seed=0, **options))
    if not isinstance(entry, str | Path):
        raise ValueError(f"an entry of exclude is a file, heldout or {{set:, options:}}, got {entry!r}")
    return texts_of_file(Path(entry))


def texts_of_file(path: Path) -> Iterator[str]:
    """The texts of a file of prompts in any format, benchmarks' files included.

    Raises: PromptError "file:line: reason".
    """
    if not path.is_file():
        raise PromptError(f"{path}: there is no such file of prompts to exclude; mend prompts.options.exclude")
    if path.suffix.lower() == ".txt":
        yield from (decoded(raw) for _, raw in filled_lines(path))
        return
    if path.suffix.lower() not in FORMATS:
        raise PromptError(f"{path}: prompts to exclude are read from .txt, {', '.join(FORMATS)} files")
    table = open_table(path)
    wanted = [column for column in TEXT_COLUMNS if table.names is None or column in table.names]
    for number, record in table.records(wanted[:1]) if wanted else [(1, {})]:
        place = f"{path}:{number}"
        if isinstance(record, PromptError):
            raise PromptError(f"{place}: {record}")
        text = next((record[column] for column in TEXT_COLUMNS if record.get(column) is not None), None)
        if not isinstance(text, str):
            raise PromptError(f"{place}: no text to exclude in {', '.join(TEXT_COLUMNS)}; rename the column that holds it")
        yield text
