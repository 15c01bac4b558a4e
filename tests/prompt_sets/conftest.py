"""Where benchmarks' own files are, if they are here."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def benchmarks() -> Path:
    """A folder of geneval.jsonl and longtext_bench/{en,zh}.jsonl, as published: XOMNI_RL_BENCHMARKS, or beside the checkout."""
    folder = Path(os.environ.get("XOMNI_RL_BENCHMARKS", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "geneval.jsonl").is_file():
        pytest.skip(f"the benchmarks' files are not in {folder}; XOMNI_RL_BENCHMARKS=FOLDER says where they are")
    return folder
