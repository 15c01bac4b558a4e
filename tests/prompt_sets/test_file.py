"""The `file` prompt set: splits that share no text, order, own held-out files, malformed lines, bad options."""

import re
from pathlib import Path
from typing import Any

import pytest

from xomni_rl.prompt_sets.cleaning import PromptWarning, normal_text
from xomni_rl.prompts import Prompt, PromptError, prompt_sets


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def file_prompts(**options: Any) -> list[Prompt]:
    return prompt_sets.get("file")(**{"split": "train", "count": 1000, "seed": 0} | options)


def test_file_split_shares_no_text_and_covers_the_file(tmp_path: Path) -> None:
    # Texts come twice, under different ids and in other letters: both copies must fall into the same split.
    path = write(tmp_path / "p.txt", *[f"prompt {i}" for i in range(200)], *[f"Prompt, {i}!" for i in range(200)])
    train, heldout = (file_prompts(path=path, split=split, deduplicate=False) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 400
    assert not {normal_text(p.text) for p in train} & {normal_text(p.text) for p in heldout}
    # 200 texts at a share of 0.1: 20 expected, standard deviation √(200·0.1·0.9) = 4.2; within 4 of those.
    assert 3 <= len({normal_text(p.text) for p in heldout}) <= 37


def test_file_split_stays_when_a_line_is_added(tmp_path: Path) -> None:
    lines = [f"prompt {i}" for i in range(100)]
    before = file_prompts(path=write(tmp_path / "a.txt", *lines), split="heldout")
    after = file_prompts(path=write(tmp_path / "b.txt", "new first line", *lines), split="heldout")
    assert {p.text for p in before} <= {p.text for p in after}


def test_same_seed_gives_same_order_and_count_cuts_it(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", *[f"prompt {i}" for i in range(100)])
    assert file_prompts(path=path) == file_prompts(path=path)
    assert file_prompts(path=path, count=5) == file_prompts(path=path)[:5]
    assert file_prompts(path=path) != file_prompts(path=path, seed=1)


def test_own_heldout_file_is_used_whole_and_its_ids_differ(tmp_path: Path) -> None:
    path, other = write(tmp_path / "p.txt", "a", "b"), write(tmp_path / "h.txt", "c", "d")
    heldout = file_prompts(path=path, heldout_path=other, split="heldout")
    assert {p.text for p in heldout} == {"c", "d"}
    assert not {p.id for p in heldout} & {p.id for p in file_prompts(path=path, heldout_path=other)}


def test_text_in_both_files_is_an_error(tmp_path: Path) -> None:
    path, other = write(tmp_path / "p.txt", "a", "b"), write(tmp_path / "h.txt", "c", "b")
    with pytest.raises(
        PromptError, match=r'p\.txt: the text of prompt "0001" is in .*h\.txt too: "b"; leave .*exclude=\[heldout'
    ):
        file_prompts(path=path, heldout_path=other)
    with pytest.warns(PromptWarning, match="left out of the split train: 1 used for evaluation"):
        assert [p.text for p in file_prompts(path=path, heldout_path=other, exclude=["heldout"])] == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs path"),
        ({"path": "p.txt", "split": "test"}, "split must be train or heldout"),
        ({"path": "p.txt", "heldout_share": 1.5}, "between 0 and 1"),
        (
            {"path": "p.txt", "max_charactes": 9},
            'unknown option of prompt set "file": "max_charactes"; nearest: max_characters',
        ),
        ({"path": "p.txt", "malformed": "skp"}, 'unknown malformed "skp"; nearest: skip'),
        ({"path": "p.txt", "languages": "en"}, "languages must be a list, got 'en'"),
        ({"path": "p.txt", "min_characters": -1}, "whole numbers from 0"),
        ({"path": "p.txt", "min_characters": 9, "max_characters": 5}, "max_characters must be at least"),
    ],
)
def test_bad_options_of_file_prompts_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        file_prompts(**options)


def test_empty_split_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "only one")
    found = file_prompts(path=path, split="train", heldout_share=1e-9)  # 1e-9 of all texts are held out: not this one
    assert [p.text for p in found] == ["only one"]
    with pytest.raises(PromptError, match="no prompts for the split heldout"):
        file_prompts(path=path, split="heldout", heldout_share=1e-9)


BAD_LINES = (
    '{"text": "a"}',
    "{",
    '{"txt": "b"}',
    '{"text": ""}',
    '{"text": "c", "id": "0000"}',
    '{"text": 3}',
    '{"text": "d"}',
)


def test_malformed_line_is_refused_with_file_line_reason_and_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *BAD_LINES)
    with pytest.raises(PromptError) as caught:
        file_prompts(path=path)
    assert str(caught.value).startswith(f"{path}:2: not JSON: ")
    assert "leave such rows out with prompts.options.malformed=skip" in str(caught.value)


def test_malformed_lines_are_skipped_by_choice_counted_and_the_first_three_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *BAD_LINES)
    with pytest.warns(PromptWarning) as caught:
        found = file_prompts(path=path, heldout_share=1e-9, malformed="skip")
    assert sorted(p.text for p in found) == ["a", "d"]
    (message,) = [str(warning.message) for warning in caught]
    # Bad are lines 2 to 6; the last one keeps the id of its place among all seven.
    assert re.search(rf"5 malformed \({re.escape(str(path))}:2: not JSON.*:3: .*:4: text must not be empty; …\)", message)
    assert {p.text: p.id for p in found} == {"a": "0000", "d": "0006"}


def test_file_of_nothing_but_malformed_lines_is_an_error_that_counts_them(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"no prompts for the split train \(2 malformed \(.*:1: not JSON"):
        file_prompts(path=write(tmp_path / "p.jsonl", "{", "["), malformed="skip")
