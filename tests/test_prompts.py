"""Prompts: fields, files with good and bad lines, quoted spans, the `file` prompt set."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xomni_rl.prompts import Prompt, PromptError, load_prompts, prompt_sets, quoted_spans

# No wall-clock limits: a busy machine is no reason to fail.
unhurried = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
LETTERS = st.text(alphabet="abcXYZ019éß漢字", min_size=1, max_size=12)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_fields_of_a_json_line_become_a_prompt(tmp_path: Path) -> None:
    record = {
        "id": "s1",
        "text": "two dogs",
        "texts": ["A", "B"],
        "checks": [{"class": "dog", "count": 2}],
        "language": "de",
        "size": [32, 96],
        "metadata": {"source": "x"},
    }
    (prompt,) = load_prompts(write(tmp_path / "p.jsonl", json.dumps(record)))
    expected = Prompt("s1", "two dogs", ("A", "B"), ({"class": "dog", "count": 2},), "de", (32, 96), {"source": "x"})
    assert prompt == expected
    assert hash(prompt) == hash(expected)


def test_text_file_gives_numbered_prompts_and_skips_blank_lines(tmp_path: Path) -> None:
    prompts = load_prompts(write(tmp_path / "p.txt", "\ufeffa cat", "", "  a dog  ", ""))
    assert [(p.id, p.text) for p in prompts] == [("0000", "a cat"), ("0001", "a dog")]


def test_windows_line_ends_and_unicode_line_separators_do_not_split_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes('{"text": "one\u2028line"}\r\n{"text": "two"}\r\n'.encode())
    assert [p.text for p in load_prompts(path)] == ["one\u2028line", "two"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("[1]", 'expected an object such as {"text": "…"}, got a list'),
        ("null", "got null"),
        ("[" * 200_000, "nested too deeply"),
        ('{"id": "a"}', 'the key "text" is missing'),
        ('{"text": "a", "txts": ["b"]}', 'unknown key "txts"; nearest: texts, text'),
        ('{"text": "  "}', "text must not be empty"),
        ('{"text": 5}', "text must be a string, got 5"),
        ('{"text": "a", "id": 7}', "id must be a string, got 7"),
        ('{"text": "a", "texts": "b"}', "texts must be a list of strings, got 'b'"),
        ('{"text": "a", "texts": ["b", ""]}', "texts[1] must not be empty"),
        ('{"text": "a", "checks": [3]}', "checks[0] must be an object, got 3"),
        ('{"text": "a", "size": [32]}', "size must be [height, width] in whole positive px, got [32]"),
        ('{"text": "a", "size": [32, true]}', "size must be"),
        ('{"text": "a", "size": [32, -96]}', "size must be"),
        ('{"text": "a", "metadata": []}', "metadata must be an object, got list"),
        ('{"text": "\\ud800"}', "half of a surrogate pair at position 0"),
        ('{"text": "a", "id": "0000"}', 'id "0000" is already that of line 1'),
    ],
)
def test_bad_line_is_named_with_file_line_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "p.jsonl", '{"text": "good"}', "", line)
    with pytest.raises(PromptError) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert reason in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"good\ncaf\xe9\n")
    with pytest.raises(PromptError, match=r"p\.txt:2: not UTF-8: byte 0xe9 at column 4"):
        load_prompts(path)


def test_empty_file_and_other_suffix_are_errors(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no prompt"):
        load_prompts(write(tmp_path / "p.txt", "", "  "))
    with pytest.raises(PromptError, match=r"not from \.csv"):
        load_prompts(write(tmp_path / "p.csv", "a"))
    with pytest.raises(FileNotFoundError):
        load_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ('a sign that says "K7AX"', ("K7AX",)),
        ('"A", then "B b" and "C"', ("A", "B b", "C")),
        ("“curly” and ‘single’ and 'straight'", ("curly", "single", "straight")),
        ("写着「你好」和『世界』的牌子", ("你好", "世界")),
        ("写着'你好'的牌子和＂字＂", ("你好", "字")),
        ("„Guten Tag“ et «bonjour»", ("Guten Tag", "bonjour")),
        ("the baker's sign, don't stop", ()),
        ("the baker’s sign, don’t stop", ()),
        ("the dogs' park says 'OPEN'", ("OPEN",)),
        ("'don't walk' on a wall", ("don't walk",)),
        ("‘don’t walk’ on a wall", ("don’t walk",)),
        ('a 12" sign that says "HELLO"', ("HELLO",)),
        ('"Room 12" on a door', ("Room 12",)),
        ("\"say 'hi' now\"", ("say 'hi' now",)),
        ('never closed "here', ()),
        ('an open " and "OK"', ("and",)),  # which of three marks opens cannot be known; left to right it is
        ('"" and " " and "  x "', ("x",)),
        ("《书名》", ()),
        ("", ()),
    ],
)
def test_quoted_spans(text: str, spans: tuple[str, ...]) -> None:
    assert quoted_spans(text) == spans


@unhurried
@given(st.lists(st.tuples(LETTERS, st.sampled_from(['""', "“”", "「」", "«»", "‘’", "''"])), max_size=5))
def test_every_quoted_string_is_found_in_order(parts: list[tuple[str, str]]) -> None:
    text = "a sign " + " and ".join(f"{quotes[0]}{span}{quotes[1]}" for span, quotes in parts)
    assert quoted_spans(text) == tuple(span for span, _ in parts)


@unhurried
@given(st.text(alphabet="ab 1'\"“”‘’「」«»„.\n", max_size=40))
def test_spans_are_stripped_parts_of_any_text(text: str) -> None:
    for span in quoted_spans(text):
        assert span
        assert span == span.strip()
        assert span in text


def file_prompts(**options: Any) -> list[Prompt]:
    return prompt_sets.get("file")(**{"split": "train", "count": 1000, "seed": 0} | options)


def test_file_split_shares_no_text_and_covers_the_file(tmp_path: Path) -> None:
    # Texts come twice, under different ids: both copies must fall into the same split.
    path = write(tmp_path / "p.txt", *[f"prompt {i % 200}" for i in range(400)])
    train, heldout = (file_prompts(path=path, split=split) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 400
    assert not {p.text for p in train} & {p.text for p in heldout}
    # 200 texts at a share of 0.1: 20 expected, standard deviation √(200·0.1·0.9) = 4.2; within 4 of those.
    assert 3 <= len({p.text for p in heldout}) <= 37


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
    with pytest.raises(PromptError, match=r'1 text\(s\) are in .* too, such as "b"'):
        file_prompts(path=path, heldout_path=other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs path"),
        ({"path": "p.txt", "split": "test"}, "split must be train or heldout"),
        ({"path": "p.txt", "heldout_share": 1.5}, "between 0 and 1"),
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
