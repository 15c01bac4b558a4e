"""GenEval's prompts with what they require: classes, counts, colours and positions (arXiv:2310.11513)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xomni_rl.prompt_sets.benchmark import ALL, benchmark_prompts, json_rows
from xomni_rl.prompts import Prompt, PromptError, Row, prompt_sets

ORIGIN = "GenEval's is prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval"


@prompt_sets.register("geneval")
def geneval(
    split: str, count: int, seed: int, path: str | Path | None = None, heldout_share: float = ALL, **cleaning: Any
) -> list[Prompt]:
    """GenEval's prompts with their classes, counts, colours and positions as `checks`, from its file; all held out.

    Args:
        split: "train" or "heldout"; training needs a `heldout_share` below 1.
        count: at most this many are returned.
        seed: order, and so which ones when there are more than `count`.
        path: the file, one object a line: {"tag", "include": [{"class", "count", "color", "position"}], "exclude", "prompt"}.
        heldout_share: share that is held out, by the hash of each text.
        cleaning: options of `Cleaning`.
    Raises: PromptError for a bad line or a missing file; ValueError for bad options.
    """
    return benchmark_prompts("geneval", split, count, seed, rows, path, heldout_share, ORIGIN, cleaning)


def rows(path: Path) -> Iterator[Row]:
    """The lines of the file."""
    return json_rows(path, _prompt)


def _prompt(record: dict[str, Any], position: int) -> Prompt:
    excluded = [{**check, "exclude": True} for check in _checks(record, "exclude", record.get("exclude") or [])]
    return Prompt(
        id=f"{position:05d}",
        text=record["prompt"],
        checks=(*_checks(record, "include", record["include"]), *excluded),
        metadata={"tag": record["tag"]},
    )


def _checks(record: dict[str, Any], key: str, checks: Any) -> list[dict[str, Any]]:
    if not isinstance(checks, list) or not all(isinstance(check, dict) and "class" in check for check in checks):
        raise PromptError(f'"{key}" must be a list of objects with a "class", got {checks!r}')
    return checks
