"""Prompts: fields, files with good and bad lines, quoted spans."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xomni_rl.prompts import Prompt, PromptError, load_prompts, quoted_spans

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


@pytest.mark.parametrize(
    ("record", "language"),
    [
        ({"text": "一块写着“OPEN”的招牌"}, "zh"),
        ({"text": "a sign that says “营业中”"}, "en"),  # what is quoted is drawn, not said
        ({"text": "ein Schild"}, "en"),  # French and German are not told from English
        ({"text": "猫の看板です"}, "en"),
        ({"text": "一块招牌", "language": "ja"}, "ja"),
    ],
)
def test_language_is_the_stated_one_and_else_told_by_the_script(tmp_path: Path, record: dict[str, str], language: str) -> None:
    (prompt,) = load_prompts(write(tmp_path / "p.jsonl", json.dumps(record)))
    assert prompt.language == language
    if "language" not in record:
        assert load_prompts(write(tmp_path / "p.txt", record["text"])) == [Prompt("0000", record["text"])] == [prompt]


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
        ('{"text": ' + "1" * 5000 + "}", "not usable JSON: Exceeds the limit"),
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
