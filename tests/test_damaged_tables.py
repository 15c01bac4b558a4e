"""Tables from outside in every kind of damage: they are read, or one sentence says what is wrong."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from xomni_rl.commands.errors import is_for_people
from xomni_rl.experiments.evaluation.longtext_counts import read_recognitions
from xomni_rl.experiments.scoring.prompt_file import read_prompt_file
from xomni_rl.prompts import load_prompts

ROWS = pd.DataFrame({"id": ["a", "b", "c"], "prompt": ["x", "y", "z"], "file": ["a.png", "b.png", "c.png"]})
WRITE: dict[str, Callable[[Path], Any]] = {
    ".parquet": lambda path: ROWS.to_parquet(path, index=False),
    ".csv": lambda path: ROWS.to_csv(path, index=False),
    ".jsonl": lambda path: ROWS.to_json(path, orient="records", lines=True),
    ".txt": lambda path: path.write_text("x\ny\nz\n"),
}
READ: tuple[Callable[[Path], Any], ...] = (load_prompts, read_prompt_file, read_recognitions)
OTHERS = (b"", b"\0" * 100, b"[]", b"{", b'null\n1\n"x"', b"[" * 100_000, b'{"id": NaN}', b"\xff\xfe\0")
OTHERS += (b'{"text": 1e999, "prompt": {}, "ground_truth": 5, "recognised": []}', b"PAR1" + b"\xff" * 8 + b"PAR1")


def damaged(whole: bytes) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for _ in range(12):
        yield whole[: rng.integers(len(whole))]
        bits = bytearray(whole)
        for at in rng.integers(len(whole), size=8):
            bits[at] = rng.integers(256)
        yield bytes(bits)
        yield rng.integers(256, size=200, dtype=np.uint8).tobytes()
    yield from OTHERS


@pytest.mark.parametrize("kind", WRITE)
def test_damaged_table_is_read_or_explained(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{kind}"
    WRITE[kind](path)
    ended: list[Exception] = []
    for data in damaged(path.read_bytes()):
        path.write_bytes(data)
        for read in READ:
            try:
                read(path)
            except Exception as error:
                ended.append(error)
    assert [error for error in ended if not is_for_people(error)] == []
    assert len(ended) > 40  # of 46 kinds of damage, read in three ways
