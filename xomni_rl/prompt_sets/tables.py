"""Records of parquet, CSV, TSV and JSON-lines files, read a piece at a time, and how their columns make a prompt."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from xomni_rl.prompts import Prompt, PromptError, Row, decoded, filled_lines, json_object
from xomni_rl.registry import unknown_name

Record = tuple[int, dict[str, Any] | PromptError]
FORMATS = {".parquet": "row", ".csv": "line", ".tsv": "line", ".jsonl": "line"}
"""Suffix → what its records are counted in."""
FIELDS = tuple(entry.name for entry in fields(Prompt))
BATCH_ROWS = 1024
_JSON_FIELDS = ("checks", "size", "metadata")


@dataclass(frozen=True)
class Columns:
    """Which column holds which field of a prompt.

    Args:
        given: field → column, for `metadata` also a list of columns; null = the field is not read. A field that is not
            named here is read from the column of its own name, if there is one.
    Raises: ValueError for a field that a prompt does not have.
    """

    given: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, column in self.given.items():
            if name not in FIELDS:
                raise ValueError(unknown_name("field of a prompt in columns:", str(name), FIELDS))
            names = column if name == "metadata" and isinstance(column, list | tuple) else [column]
            if not all(isinstance(each, str) for each in names) and column is not None:
                raise ValueError(f"columns.{name} must be the name of a column, got {column!r}")

    def among(self, present: Sequence[str] | None, place: str) -> dict[str, str | list[str]]:
        """Field → column, or columns for `metadata`, of a table with the columns `present` (None: not known).

        Raises: PromptError for a column that is not there, or if none holds the text.
        """
        chosen = {name: name for name in FIELDS if name not in self.given and (present is None or name in present)}
        wanted: dict[str, str | list[str]] = {**chosen, **{k: v for k, v in self.given.items() if v is not None}}
        for column in flat(wanted):
            if present is not None and column not in present:
                raise PromptError(f"{place}: {unknown_name('column', column, present)}; mend prompts.options.columns")
        if "text" not in wanted:
            names = f"; its columns: {', '.join(present)}" if present is not None else ""
            raise PromptError(f'{place}: no column "text"; say which one holds it: +prompts.options.columns.text=NAME{names}')
        return wanted


def flat(columns: Mapping[str, str | list[str]]) -> list[str]:
    """The columns' names, each once."""
    return list(dict.fromkeys(c for each in columns.values() for c in ([each] if isinstance(each, str) else each)))


def files_of(path: str | Path) -> list[Path]:
    """The file, or all readable files of a folder by name. Raises: PromptError if there is none."""
    path = Path(path)
    if not path.exists():
        raise PromptError(f"{path}: there is no such file or folder; give one with prompts.options.path=FILE")
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in FORMATS) if path.is_dir() else [path]
    if not files or files[0].suffix.lower() not in FORMATS:
        raise PromptError(f"{path}: tables are read from {', '.join(FORMATS)} files or a folder of them, and this is none")
    return files


@dataclass(frozen=True)
class Table:
    """One open file.

    Args:
        names: of its columns; None = each record has its own (JSON lines).
        records: gives (number, record or why it is none) of every row, with at least the columns it is asked for.
    """

    names: list[str] | None
    records: Callable[[list[str]], Iterator[Record]]


def table_rows(path: str | Path, columns: Columns) -> Iterator[Row]:
    """The rows of a table, or of all tables of a folder.

    Raises: PromptError for a path, a table or a column that is not there or cannot be read.
    """
    position = 0
    for file in files_of(path):
        suffix, table = file.suffix.lower(), open_table(file)
        names = columns.among(table.names, str(file))
        for number, record in table.records(flat(names)):
            prompt = prompt_of(record, names, f"{position:04d}", is_text=suffix in (".csv", ".tsv"))
            yield Row(str(file), number, prompt, FORMATS[suffix])
            position += 1


def open_table(path: Path) -> Table:
    """A file of one of `FORMATS`. Raises: PromptError if it cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _open_parquet(path)
    if suffix == ".jsonl":
        return Table(None, lambda columns: _json_records(path))
    return _open_csv(path, "\t" if suffix == ".tsv" else ",")


def _open_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for a column's damaged name
        raise PromptError(f"{path}: not a parquet file that can be read ({error}); write it again") from error

    def records(columns: list[str]) -> Iterator[Record]:
        number = 0
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise PromptError(f"{path}: damaged after row {number} ({error}); write it again") from error

    return Table(names, records)


def _json_records(path: Path) -> Iterator[Record]:
    for number, raw in filled_lines(path):
        try:
            yield number, json_object(decoded(raw))
        except PromptError as error:
            yield number, error


def _open_csv(path: Path, delimiter: str) -> Table:
    """The table whose header is the first line; records have the number of the line that each begins at."""
    cells = _csv_cells(path, delimiter)
    _, header = next(cells, (1, []))
    if isinstance(header, PromptError) or not header or len(set(header)) < len(header):
        reason = header if isinstance(header, PromptError) else "the first line must name the columns, each once"
        raise PromptError(f"{path}:1: {reason}")
    return Table(header, lambda columns: ((number, _csv_record(header, row)) for number, row in cells))


def _csv_cells(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | PromptError]]:
    # surrogateescape lets a line that is not UTF-8 through, to be named; the reader goes on after a line it cannot read.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, PromptError(f"not CSV: {error}")
                continue
            if cells:
                yield number, cells


def _csv_record(header: list[str], cells: list[str] | PromptError) -> dict[str, Any] | PromptError:
    if isinstance(cells, PromptError):
        return cells
    if len(cells) != len(header):
        return PromptError(f"{len(cells)} fields where the header has {len(header)}; quote fields that hold a separator")
    for column, cell in zip(header, cells, strict=True):
        escaped = next((c for c in cell if "\udc80" <= c <= "\udcff"), None)
        if escaped:
            return PromptError(f'not UTF-8: byte 0x{ord(escaped) - 0xDC00:02x} in column "{column}"')
    return dict(zip(header, cells, strict=True))


def prompt_of(
    record: Mapping[str, Any] | PromptError, columns: Mapping[str, str | list[str]], default_id: str, is_text: bool
) -> Prompt | PromptError:
    """The prompt of a record, or why it is none.

    Empty cells are fields not given. A number as id becomes a string, a single string in `texts` a list of one.

    Args:
        record: column → value.
        columns: field → column.
        default_id: id of a prompt without one.
        is_text: cells are text, in which checks, size and metadata are written as JSON, and texts may be.
    """
    if isinstance(record, PromptError):
        return record
    values: dict[str, Any] = {"id": default_id}
    try:
        for name, column in columns.items():
            value = {c: record.get(c) for c in column} if isinstance(column, list) else record.get(column)
            if value is not None and not (is_text and value == ""):
                values[name] = _field(name, column, value, is_text)
        if "text" not in values:
            raise PromptError(f'there is no text in column "{columns["text"]}"')
        return Prompt(**values)
    except PromptError as error:
        return error


def _field(name: str, column: str | list[str], value: Any, is_text: bool) -> Any:
    if is_text and isinstance(value, str) and name in _JSON_FIELDS:
        value = _json_cell(column, value)
    if name == "id" and type(value) is int:
        return str(value)
    if name == "texts" and isinstance(value, str):
        strings = _list_cell(value) if is_text else None
        return (value,) if strings is None else strings
    if name == "checks" and isinstance(value, list):
        return [{k: v for k, v in each.items() if v is not None} if isinstance(each, dict) else each for each in value]
    if name == "metadata" and isinstance(value, dict):
        return json.loads(json.dumps(value, default=str))
    return value


def _json_cell(column: str | list[str], cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise PromptError(f'column "{column}" must be JSON, such as [32, 96], got {cell[:40]!r}') from error


def _list_cell(cell: str) -> list[Any] | None:
    """The list that a cell writes as JSON; None if it is plain text."""
    try:
        found = json.loads(cell) if cell.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None
