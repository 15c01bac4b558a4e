"""The table of scores: its columns from all batches, and writers that take it a piece at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from xomni_rl.experiments.scoring.matching import Item
from xomni_rl.experiments.scoring.parts import Parts
from xomni_rl.experiments.scoring.scorers import as_json, wider

OUTPUT_SUFFIXES = (".csv", ".jsonl", ".parquet")
PIECE = 4096
"""Rows that are in memory at a time."""


@dataclass
class Columns:
    """Columns of the table, in order.

    Args:
        first: what says which image it is.
        figures: reward → its columns of numbers.
        details: column → int, float, bool, str or none.
    """

    first: list[str]
    figures: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def kinds(self) -> dict[str, str]:
        """Every column, in the table's order, and its kind; the error last, also where no row has one."""
        figures = {column: "float" for columns in self.figures.values() for column in columns}
        first = {column: "int" if column == "sample" else "str" for column in self.first}
        details = {column: kind for column, kind in self.details.items() if column not in figures}
        return {**first, **figures, **details, "error": "str"}


def columns_of(items: Sequence[Item], parts: Parts) -> Columns:
    """The columns that images and batches need, whatever order the batches were scored in; no prompts, no column of them."""
    first = ["model"] * any(item.model for item in items) + ["file", "prompt_id"]
    prompted = any(item.prompt.text != item.name for item in items)
    columns = Columns([*first, *["sample"] * any(item.sample > 1 for item in items), *["prompt"] * prompted])
    for scored in parts.read():
        for name, found in scored.figures.items():
            known = columns.figures.setdefault(name, [])
            known += [column for column in found if column not in known]
        for column, kind in scored.kinds.items():
            columns.details[column] = wider(columns.details.get(column, "none"), kind)
    return columns


def rows_of(items: Sequence[Item], parts: Parts, columns: Columns) -> Iterator[dict[str, Any]]:
    """Rows in the order of the items, each with every column."""
    kinds = columns.kinds()
    remaining = iter(items)
    for scored in parts.read():
        for item, row in zip(islice(remaining, len(scored.rows)), scored.rows, strict=True):
            row |= {"model": item.model, "file": item.name, "prompt_id": item.prompt.id, "prompt": item.prompt.text}
            row["sample"] = item.sample
            yield {column: _as_kind(row.get(column), kind) for column, kind in kinds.items()}


def write_table(path: Path, rows: Iterable[dict[str, Any]], kinds: dict[str, str]) -> None:
    """Writes a .csv, .jsonl or .parquet file, a piece at a time. Raises: OSError as it comes."""
    writer = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}[path.suffix.lower()]
    writer(path, iter(rows), kinds)


def _write_csv(path: Path, rows: Iterator[dict[str, Any]], kinds: dict[str, str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(kinds), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_jsonl(path: Path, rows: Iterator[dict[str, Any]], kinds: dict[str, str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], kinds: dict[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_()}
    schema = pa.schema([(column, types.get(kind, pa.string())) for column, kind in kinds.items()])
    with pq.ParquetWriter(path, schema) as writer:
        while piece := list(islice(rows, PIECE)):
            writer.write_table(pa.Table.from_pylist(piece, schema=schema))


def _as_kind(value: Any, kind: str) -> Any:
    if value is None or kind in ("int", "bool"):
        return value
    if kind == "float":
        return float(value)
    return value if isinstance(value, str) else as_json(value)
