"""What has been scored already, line by line on disk, so that a run that is killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from xomni_rl.experiments.evaluation.pictures import digest, prompt_digest
from xomni_rl.experiments.evaluation.suite import Row, Sample, Suite


class Journal:
    """Rows by key in a JSON-lines file; what a kill cut off in the middle of a line is dropped.

    Args:
        path: made at the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        if not path.exists():
            return
        whole = 0
        with path.open("rb") as file:
            for line in file:
                record = _record(line)
                if record is None:
                    break
                whole += len(line)
                self.rows[record["key"]] = record["row"]
        if whole < path.stat().st_size:
            os.truncate(path, whole)

    def add(self, keys: list[str], rows: list[Row]) -> None:
        """Appends rows and sees them on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"key": key, "row": row}, ensure_ascii=False) + "\n" for key, row in zip(keys, rows, strict=True)]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= dict(zip(keys, rows, strict=True))


def row_key(suite: Suite, sample: Sample, file: Path) -> str:
    """Hash of all that decides a row: suite, version, options, prompt, number and the image file's bytes."""
    with file.open("rb") as stream:
        image = hashlib.file_digest(stream, "sha256").hexdigest()
    prompt = prompt_digest(sample.prompt)
    return digest([suite.name, suite.version, dict(suite.options), prompt, sample.number, image])


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a whole line; None for a line that was cut off or is another thing."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    is_ours = isinstance(record, dict) and isinstance(record.get("key"), str) and isinstance(record.get("row"), dict)
    return record if is_ours else None
