"""The `table` set: parquet, CSV, TSV and JSON lines with columns of any name, malformed rows in each, drawing, splits."""

import contextlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xomni_rl.prompt_sets.cleaning import PromptWarning
from xomni_rl.prompts import Prompt, PromptError, prompt_sets

COLUMNS = {"text": "caption", "texts": "words", "id": "key", "metadata": ["score"]}
EVERYTHING = {"heldout_share": 1e-9}


def table(path: Path, **options: Any) -> list[Prompt]:
    return prompt_sets.get("table")(**{"split": "train", "count": 1000, "seed": 0, "path": path} | options)


def by_id(found: list[Prompt]) -> dict[str, Prompt]:
    return {prompt.id: prompt for prompt in found}


def write_parquet(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def write_text(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def good_parquet(folder: Path) -> Path:
    columns = {"caption": ["a cat", "a dog"], "words": [["A", "B"], None], "key": [7, 8], "score": [0.5, 0.25], "x": [1, 2]}
    return write_parquet(folder / "p.parquet", **columns)


def good_csv(folder: Path) -> Path:
    return write_text(folder / "p.csv", "caption,words,key,score,x", 'a cat,"[""A"", ""B""]",7,0.5,1', "a dog,,8,0.25,2")


def good_tsv(folder: Path) -> Path:
    return write_text(folder / "p.tsv", "caption\twords\tkey\tscore", 'a cat\t"[""A"", ""B""]"\t7\t0.5', "a dog\t\t8\t0.25")


def good_json_lines(folder: Path) -> Path:
    rows = [{"caption": "a cat", "words": ["A", "B"], "key": 7, "score": 0.5}, {"caption": "a dog", "key": 8, "score": 0.25}]
    return write_text(folder / "p.jsonl", *map(json.dumps, rows))


@pytest.mark.parametrize("write", [good_parquet, good_csv, good_tsv, good_json_lines])
def test_columns_are_mapped_in_every_format(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    found = by_id(table(write(tmp_path), columns=COLUMNS, **EVERYTHING))
    assert {key: (p.text, p.texts, float(p.metadata["score"])) for key, p in found.items()} == {
        "7": ("a cat", ("A", "B"), 0.5),
        "8": ("a dog", (), 0.25),
    }


def test_fields_without_a_mapping_come_from_the_columns_of_their_names(tmp_path: Path) -> None:
    checks = [[{"class": "cat", "count": 2, "color": None}]]
    path = write_parquet(tmp_path / "p.parquet", text=["猫"], language=["ja"], size=[[32, 96]], checks=checks, other=[1])
    assert table(path, **EVERYTHING) == [
        Prompt("0000", "猫", checks=({"class": "cat", "count": 2},), language="ja", size=(32, 96))
    ]
    # null: the column is there, and not read; the characters then tell the language.
    assert table(path, columns={"language": None}, **EVERYTHING)[0].language == "zh"


def test_csv_cells_of_structured_fields_are_json_and_of_texts_may_be(tmp_path: Path) -> None:
    lines = ["text,texts,size,checks", 'a sign,OPEN,"[32, 96]","[{""class"": ""cat""}]"', "another,[EXIT],,"]
    found = by_id(table(write_text(tmp_path / "p.csv", *lines), **EVERYTHING))
    assert (found["0000"].texts, found["0000"].size, found["0000"].checks) == (("OPEN",), (32, 96), ({"class": "cat"},))
    assert (found["0001"].texts, found["0001"].size) == (("[EXIT]",), None)


def test_folder_is_read_file_by_file_in_the_order_of_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "b.parquet", text=["third"])
    write_text(tmp_path / "a.csv", "text", "first", '"second, on', 'two lines"')
    (tmp_path / "notes.md").write_text("not a table")
    assert {key: p.text for key, p in by_id(table(tmp_path, **EVERYTHING)).items()} == {
        "0000": "first",
        "0001": "second, on\ntwo lines",
        "0002": "third",
    }


def bad_parquet(folder: Path) -> Path:
    return write_parquet(folder / "p.parquet", text=["good", None, " ", "other"], id=["a", "b", "c", "a"])


def bad_csv(folder: Path) -> Path:
    path = folder / "p.csv"
    path.write_bytes(b'text,size\ngood,\nshort\nx,{\ncaf\xe9,\n"",\n"a"b,\nlast,"[1, 2]"\n')
    return path


def bad_json_lines(folder: Path) -> Path:
    return write_text(folder / "p.jsonl", '{"text": "good"}', "{", '{"txt": "x"}', '{"text": 3}', '{"text": "last"}')


@pytest.mark.parametrize(
    ("write", "good", "reasons"),
    [
        (
            bad_parquet,
            {"good"},
            [
                'p.parquet, row 2: there is no text in column "text"',
                "p.parquet, row 3: text must not be empty",
                'p.parquet, row 4: id "a" is already that of row 1',
            ],
        ),
        (
            bad_csv,
            {"good", "last"},
            [
                "p.csv:3: 1 fields where the header has 2; quote fields that hold a separator",
                """p.csv:4: column "size" must be JSON, such as [32, 96], got '{'""",
                'p.csv:5: not UTF-8: byte 0xe9 in column "text"',
                'p.csv:6: there is no text in column "text"',
                "p.csv:7: not CSV: ',' expected after '\"'",
            ],
        ),
        (
            bad_json_lines,
            {"good", "last"},
            [
                "p.jsonl:2: not JSON: Expecting property name enclosed in double quotes at column 2",
                'p.jsonl:3: there is no text in column "text"',
                "p.jsonl:4: text must be a string, got 3",
            ],
        ),
    ],
)
def test_malformed_rows_are_refused_by_place_and_reason_or_skipped_and_counted(
    tmp_path: Path, write: Callable[[Path], Path], good: set[str], reasons: list[str]
) -> None:
    path = write(tmp_path)
    with pytest.raises(PromptError) as refused:
        table(path, **EVERYTHING)
    assert str(refused.value).startswith(f"{path.parent}/{reasons[0]}")
    assert "malformed=skip" in str(refused.value)
    with pytest.warns(PromptWarning) as caught:
        assert {p.text for p in table(path, malformed="skip", **EVERYTHING)} == good
    message = str(caught[0].message)
    assert f"{len(reasons)} malformed" in message
    assert all(reason in message for reason in reasons[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "none.parquet"}, r"none\.parquet: there is no such file or folder; give one with prompts\.options\.path"),
        ({"path": "x.xlsx"}, r"x\.xlsx: tables are read from \.parquet, \.csv, \.tsv, \.jsonl"),
        ({"path": "broken.parquet"}, r"broken\.parquet: not a parquet file that can be read"),
        ({"path": "twice.csv"}, r"twice\.csv:1: the first line must name the columns, each once"),
        (
            {},
            r'p\.parquet: no column "text"; .*: \+prompts\.options\.columns\.text=NAME; its columns: caption, key',
        ),
        ({"columns": {"text": "captoin"}}, 'unknown column "captoin"; nearest: caption; known: caption, key'),
    ],
)
def test_table_that_cannot_be_used_is_a_sentence(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_parquet(tmp_path / "p.parquet", caption=["a"], key=[1])
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    write_text(tmp_path / "twice.csv", "text,text", "a,b")
    with pytest.raises(PromptError, match=message):
        table(
            **{"path": tmp_path / "p.parquet"} | options | ({"path": tmp_path / options["path"]} if "path" in options else {})
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "needs path"),
        ({"columns": {"txt": "caption"}}, 'unknown field of a prompt in columns: "txt"; nearest: text'),
        ({"columns": {"text": 3}}, "columns.text must be the name of a column, got 3"),
        ({"colums": {}}, 'unknown option of prompt set "table": "colums"; nearest: columns'),
    ],
)
def test_bad_option_is_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(**{"path": Path("p.parquet")} | options)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_of_any_format_is_read_or_refused_in_a_sentence(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"p{suffix}"
    write = {".csv": good_csv, ".tsv": good_tsv, ".jsonl": good_json_lines, ".parquet": good_parquet}[suffix]
    content = bytearray(write(tmp_path).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(content)
    for malformed in ("refuse", "skip"):
        with warnings.catch_warnings(), contextlib.suppress(PromptError):
            warnings.simplefilter("ignore", PromptWarning)
            assert len(table(path, columns={"text": "caption"}, malformed=malformed, **EVERYTHING)) <= 10


def test_damaged_name_of_a_column_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = good_parquet(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"caption", b"\x80aption"))
    with pytest.raises(PromptError, match="not a parquet file that can be read"):
        table(path, columns={"text": "caption"})


def test_count_draws_the_beginning_of_one_order_that_the_seed_makes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", text=[f"prompt {i}" for i in range(3000)])
    whole = table(path, count=5000)
    assert table(path, count=7) == whole[:7]
    assert [p.id for p in whole] != [p.id for p in table(path, count=5000, seed=1)]
    # 3000 texts at a share of 0.1: 300 held out, standard deviation √(3000·0.1·0.9) = 16.4; within 4 of those.
    assert 234 <= 3000 - len(whole) <= 366


def test_own_heldout_table_excludes_its_texts_from_training_by_choice(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", text=["a", "b"])
    other = write_text(tmp_path / "h.csv", "text", "B!", "c")
    with pytest.raises(PromptError, match=r"is in .*h\.csv too"):
        table(path, heldout_path=other)
    with pytest.warns(PromptWarning, match="1 used for evaluation"):
        assert [p.text for p in table(path, heldout_path=other, exclude=["heldout"])] == ["a"]
    assert {p.id for p in table(path, heldout_path=other, split="heldout")} == {"heldout-0000", "heldout-0001"}
