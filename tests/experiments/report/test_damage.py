"""A run folder whose text files are damaged: one sentence or a page, and no traceback."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xomni_rl.commands.errors import is_for_people
from xomni_rl.experiments.report.data import ReportError
from xomni_rl.experiments.report.page import build_report
from xomni_rl.policies.records import RunFolderError, read_rows

FILES = ("metrics.jsonl", "config.yaml", "manifest.json", "summary.json")
CONTENTS = (b"", b"[]", b"null", b'"text"', b"\xff\xfe\x00\n\n", b'{"reward": "text"}\n{"step": "a"}\n', b"[" * 100_000)


@pytest.mark.parametrize("name", FILES)
def test_damaged_text_file_ends_in_a_sentence_or_a_page(name: str, write_run: Callable[..., Path], tmp_path: Path) -> None:
    run = write_run("run")
    whole, rng = (run / name).read_bytes(), np.random.default_rng(0)
    damaged = [whole[: rng.integers(len(whole))] for _ in range(3)]
    for _ in range(3):
        bits = bytearray(whole)
        for at in rng.integers(len(whole), size=20):
            bits[at] = rng.integers(256)
        damaged.append(bytes(bits))
    ended: list[Exception] = []
    for data in (*CONTENTS, *damaged):
        (run / name).write_bytes(data)
        try:
            build_report(run)
        except Exception as error:
            ended.append(error)
    assert [error for error in ended if not is_for_people(error)] == []
    assert {type(error) for error in ended} == {ReportError}  # what is no text, at least, makes no page


def test_line_that_is_no_text_stops_a_run_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": "\xff"}\n{"step": 3}\n')
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl:2: not JSON.*delete this line to go on"):
        read_rows(tmp_path / "metrics.jsonl")
