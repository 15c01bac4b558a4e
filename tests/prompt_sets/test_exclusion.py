"""Evaluation prompts that training must not see: files in every format, benchmarks' own files, other sets, bad entries."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xomni_rl.prompt_sets.cleaning import PromptWarning, fingerprint
from xomni_rl.prompt_sets.exclusion import excluded_fingerprints
from xomni_rl.prompts import Prompt, PromptError, prompt_sets


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def train(path: Path, *exclude: Any) -> list[Prompt]:
    return prompt_sets.get("file")("train", 100, 0, path=path, heldout_share=1e-9, exclude=list(exclude))


def test_texts_of_files_in_every_format_are_left_out_of_training(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "one", "two", "three", "four", "five", "six")
    pq.write_table(pa.table({"x": [1], "caption": ["Five."]}), tmp_path / "e.parquet")
    exclude = [
        write(tmp_path / "e.txt", "ONE!"),
        write(tmp_path / "e.jsonl", '{"text": "two"}', '{"tag": "t", "prompt": "three", "include": []}'),
        write(tmp_path / "e.csv", "n,prompt", "1,four"),
        tmp_path / "e.parquet",
    ]
    with pytest.warns(PromptWarning, match="left out of the split train: 5 used for evaluation"):
        assert [p.text for p in train(path, *map(str, exclude))] == ["six"]


def test_heldout_prompts_of_another_set_are_left_out(tmp_path: Path, benchmarks: Path) -> None:
    path = write(tmp_path / "p.txt", "a photo of a bench", "A photo of two clocks!", "a photo of a unicorn")
    entry = {"set": "geneval", "options": {"path": str(benchmarks / "geneval.jsonl")}}
    with pytest.warns(PromptWarning, match="2 used for evaluation"):
        assert [p.text for p in train(path, entry)] == ["a photo of a unicorn"]


def test_heldout_prompts_themselves_are_not_left_out_of_the_heldout_split(tmp_path: Path) -> None:
    path, other = write(tmp_path / "p.txt", "one"), write(tmp_path / "e.txt", "one")
    found = prompt_sets.get("file")("heldout", 9, 0, path=path, heldout_share=1.0, exclude=[str(other)])
    assert [p.text for p in found] == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, r"none\.txt: there is no such file of prompts to exclude; mend prompts\.options\.exclude"),
        ("e.json", "{}", r"e\.json: prompts to exclude are read from \.txt, \.parquet, \.csv"),
        ("e.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"e\.jsonl:2: no text to exclude in text, prompt, caption; rename"),
        ("e.jsonl", "{\n", r"e\.jsonl:1: not JSON"),
        ("e.csv", "words\na\n", r"e\.csv:1: no text to exclude"),
    ],
)
def test_file_that_cannot_be_excluded_is_a_sentence(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(PromptError, match=message):
        excluded_fingerprints([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "an entry of exclude is a file, heldout or {set:, options:}, got 3"),
        ({"sett": "signs"}, 'unknown key of an entry of exclude: "sett"; nearest: set'),
    ],
)
def test_bad_entry_is_a_sentence(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        excluded_fingerprints([entry])


def test_fingerprints_are_those_of_the_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "e.jsonl", *(json.dumps({"text": text}) for text in ("a", "b")))
    assert excluded_fingerprints([str(path), "heldout"]) == {fingerprint("a"), fingerprint("b")}
