"""Prompts of a scoring job: the project's own files, and tables of any generator with a column that names the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xomni_rl.experiments.scoring.errors import ScoringError
from xomni_rl.prompt_sets.tables import FIELDS, FORMATS, Table, open_table, prompt_of
from xomni_rl.prompts import Prompt, PromptError, Row, load_prompts
from xomni_rl.registry import unknown_name

FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_path", "path")
"""Columns that are taken to name the image when nothing else is said."""
ALIASES = {"text": ("text", "prompt", "caption"), "id": ("id", "prompt_id")}
"""Field of a prompt → columns that may hold it; the first that is there does."""
WAYS = ("auto", "name", "index")
"""Ways of matching; anything else is the name of a column."""


@dataclass(frozen=True)
class PromptFile:
    """Prompts in the order of their file.

    Args:
        prompts: with a column that names images, one per row, and an id may come again; else ids differ.
        cells: that column's cells, one per prompt; None = there is no such column.
        column: its name; "" = none.
    """

    prompts: Sequence[Prompt]
    cells: Sequence[str] | None = None
    column: str = ""


def read_prompt_file(path: str | Path, match: str = "auto") -> PromptFile:
    """Prompts of a .txt, .jsonl, .csv, .tsv or .parquet file.

    Args:
        path: the file.
        match: name or index = no column names the images; auto = one of FILE_COLUMNS does if it is there; else the column.
    Raises: ScoringError for a column that is not there; PromptError for bad rows; OSErrors as they come.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        if match not in WAYS:
            raise ScoringError(f"{path}: has no columns to match by; give a table ({', '.join(FORMATS)}) or --match name")
        return PromptFile(load_prompts(path))
    table = open_table(path)
    names = _first_keys(table) if table.names is None else table.names
    column = _file_column(path, names, match)
    if table.names is None and not column and ("text" in names or not set(ALIASES["text"]) & set(names)):
        return PromptFile(load_prompts(path))
    columns = _columns(path, names)
    wanted = [*dict.fromkeys([*columns.values(), *filter(None, [column])])]
    records = list(table.records(wanted))
    rows = list(_rows(path, records, columns))
    if not column:
        once = {prompt.id: prompt for prompt in _repeating(rows)}
        return PromptFile(_some_prompts(path, list(once.values())))
    prompts = _some_prompts(path, list(_repeating(rows)))
    cells = [_cell(row, record, column) for row, (_, record) in zip(rows, records, strict=True)]
    return PromptFile(prompts, cells, column)


def _first_keys(table: Table) -> list[str]:
    record = next((record for _, record in table.records([])), {})
    return [] if isinstance(record, PromptError) else list(record)


def _file_column(path: Path, names: Sequence[str], match: str) -> str:
    if match in ("name", "index"):
        return ""
    if match == "auto":
        return next((column for column in FILE_COLUMNS if column in names), "")
    if match not in names:
        raise ScoringError(f"{path}: {unknown_name('column', match, names)}")
    return match


def _columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Field of a prompt → its column."""
    options = {field: ALIASES.get(field, (field,)) for field in FIELDS}
    found = {field: next((name for name in each if name in names), "") for field, each in options.items()}
    if not found["text"]:
        raise ScoringError(
            f"{path}: none of the columns {', '.join(ALIASES['text'])} is there to hold the prompt; "
            f"its columns: {', '.join(names) or 'none'}"
        )
    return {field: column for field, column in found.items() if column}


def _rows(path: Path, records: Sequence[tuple[int, Any]], columns: Mapping[str, str]) -> Iterator[Row]:
    suffix = path.suffix.lower()
    for position, (number, record) in enumerate(records):
        prompt = prompt_of(record, dict(columns), f"{position:04d}", is_text=suffix in (".csv", ".tsv"))
        yield Row(str(path), number, prompt, FORMATS[suffix])


def _repeating(rows: Sequence[Row]) -> Iterator[Prompt]:
    """The prompts of rows whose ids may come again, as long as they ask for the same."""
    first: dict[str, Prompt] = {}
    for row in rows:
        if isinstance(row.prompt, PromptError):
            raise PromptError(f"{row.place}: {row.prompt}")
        known = first.setdefault(row.prompt.id, row.prompt)
        if known.text != row.prompt.text:
            raise PromptError(f'{row.place}: id "{row.prompt.id}" already stands for another text')
        yield known


def _cell(row: Row, record: Any, column: str) -> str:
    cell = record.get(column) if isinstance(record, dict) else None
    if not isinstance(cell, str) or not cell.strip():
        raise PromptError(f'{row.place}: column "{column}" names no file')
    return cell.strip()


def _some_prompts(path: Path, prompts: list[Prompt]) -> list[Prompt]:
    if not prompts:
        raise PromptError(f"{path}: there is no prompt in this file")
    return prompts
