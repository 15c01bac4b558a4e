"""Which image belongs to which prompt, for folders as generators leave them."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from xomni_rl.experiments.scoring import ScoringError, match_folder
from xomni_rl.experiments.scoring.matching import Match
from xomni_rl.prompts import PromptError


def matched(tmp_path: Path, names: Sequence[str], ids: Sequence[str], **options: Any) -> Match:
    """A folder of files with these names (matching opens none of them) and prompts with these ids."""
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    lines = [json.dumps({"id": identity, "text": f"text of {identity}"}) for identity in ids]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    return match_folder(tmp_path / "images", options.pop("prompts", tmp_path / "prompts.jsonl"), **options)


def pairs(match: Match) -> list[tuple[str, str, int]]:
    return [(item.name, item.prompt.id, item.sample) for item in match.items]


def test_names_match_ids_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    match = matched(tmp_path, ["b.png", "a.jpg"], ["a", "b"])
    assert pairs(match) == [("a.jpg", "a", 1), ("b.png", "b", 1)]
    assert match.how == "name"


def test_files_are_matched_in_natural_order_if_no_name_is_an_id(tmp_path: Path) -> None:
    match = matched(tmp_path, ["10.png", "2.png", "1.png"], ["s1", "s2", "s3"])
    assert pairs(match) == [("1.png", "s1", 1), ("2.png", "s2", 1), ("10.png", "s3", 1)]
    assert match.how == "index"


def test_several_images_for_one_prompt_are_its_samples(tmp_path: Path) -> None:
    match = matched(tmp_path, ["0001_2.png", "0001_10.png", "0000_1.png"], ["0000", "0001"])
    assert pairs(match) == [("0000_1.png", "0000", 1), ("0001_2.png", "0001", 1), ("0001_10.png", "0001", 2)]
    assert match.how == "name, several images for one prompt"


def test_id_that_ends_in_a_number_is_no_sample_of_another(tmp_path: Path) -> None:
    assert pairs(matched(tmp_path, ["s_1.png", "s_2.png"], ["s_1", "s_2"])) == [("s_1.png", "s_1", 1), ("s_2.png", "s_2", 1)]


def test_numbered_groups_are_matched_by_order(tmp_path: Path) -> None:
    match = matched(tmp_path, ["0_1.png", "0_2.png", "1_1.png"], ["x", "y"])
    assert pairs(match) == [("0_1.png", "x", 1), ("0_2.png", "x", 2), ("1_1.png", "y", 1)]


def test_folder_per_prompt_is_matched_by_the_folders_name_or_place(tmp_path: Path) -> None:
    names = ["00000/samples/0000.png", "00000/samples/0001.png", "00001/samples/0000.png"]
    expected = [(names[0], "00000", 1), (names[1], "00000", 2), (names[2], "00001", 1)]
    assert pairs(matched(tmp_path, names, ["00000", "00001"])) == expected
    assert [identity for _, identity, _ in pairs(matched(tmp_path, names, ["x", "y"]))] == ["x", "x", "y"]


def test_folders_inside_count_only_if_there_is_no_image_beside_them_or_on_request(tmp_path: Path) -> None:
    names = ["a.png", "grids/all.png"]
    assert pairs(matched(tmp_path, names, ["a"])) == [("a.png", "a", 1)]
    with pytest.raises(ScoringError, match=r"no prompt id: grids/all\.png"):
        matched(tmp_path, names, ["a"], recursive=True)
    with pytest.raises(ScoringError, match="holds no image"):
        match_folder(tmp_path, tmp_path / "prompts.jsonl", recursive=False)


@pytest.mark.parametrize(
    ("files", "ids", "message"),
    [
        (("a.png", "a.jpg", "b.png"), ("a", "b"), r"several images for one prompt: a\.jpg, a\.png"),
        (("a.png", "c.png"), ("a", "b"), r"images whose name is no prompt id: c\.png"),
        (("a.png",), ("a", "b"), "prompts without an image: b; --partial leaves them out"),
        (("a.png", "c.png"), ("a", "b"), r"prompt id: c\.png; prompts without an image: b; --partial"),
        (("x.png",), ("a", "b"), r"1 images and 2 prompts: no file name is a prompt id.*x\.png.*a"),
    ],
)
def test_ambiguous_or_missing_partners_are_named(
    tmp_path: Path, files: tuple[str, ...], ids: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ScoringError, match=message):
        matched(tmp_path, files, ids)


def test_part_of_the_prompts_is_taken_on_request_and_named(tmp_path: Path) -> None:
    match = matched(tmp_path, ["b.png", "sheet.png"], ["a", "b"], partial=True)
    assert (pairs(match), match.missing, match.strangers) == ([("b.png", "b", 1)], ["a"], ["sheet.png"])


@pytest.mark.parametrize(("names", "expected"), [(["0.png", "2.png"], ["a", "c"]), (["0003.png", "1.png"], ["a", "c"])])
def test_numbers_of_a_part_count_from_0_or_1(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    match = matched(tmp_path, names, ["a", "b", "c"], partial=True)
    assert [identity for _, identity, _ in pairs(match)] == expected


def test_numbers_that_may_count_from_0_or_1_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScoringError, match="count from 0 or from 1 cannot be told"):
        matched(tmp_path, ["1.png", "2.png"], ["a", "b", "c"], partial=True)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".tsv"])
def test_column_names_the_file_whatever_its_folder_or_suffix(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame(
        {"file_name": ["out/x/b.png", "a", "c.png"], "prompt": ["B", "A", "B"], "prompt_id": ["p", "q", "p"], "seed": [1, 2, 3]}
    )
    path = tmp_path / f"table{suffix}"
    {
        ".csv": lambda: table.to_csv(path, index=False),
        ".tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        ".parquet": lambda: table.to_parquet(path),
        ".jsonl": lambda: table.to_json(path, orient="records", lines=True),
    }[suffix]()
    match = matched(tmp_path, ["a.png", "b.png", "c.png"], ["x"], prompts=path)
    assert pairs(match) == [("b.png", "p", 1), ("a.png", "q", 1), ("c.png", "p", 2)]
    assert [item.prompt.text for item in match.items] == ["B", "A", "B"]
    assert match.how == 'column "file_name"'


@pytest.mark.parametrize("match", ["auto", "name"])
def test_scores_of_several_models_are_prompts_again(tmp_path: Path, match: str) -> None:
    rows = [(model, f"{name}.png", name, name.upper()) for model in ("one", "two") for name in ("a", "b")]
    pd.DataFrame(rows, columns=["model", "file", "prompt_id", "prompt"]).to_csv(tmp_path / "t.csv", index=False)
    found = pairs(matched(tmp_path, ["a.png", "b.png"], ["x"], prompts=tmp_path / "t.csv", match=match))
    assert found == [("a.png", "a", 1), ("b.png", "b", 1)]


def test_image_that_no_row_names_is_named_beside_the_prompts_without_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,id,text\na.png,p,A\nz.png,q,B\n")
    with pytest.raises(ScoringError, match=r"images that no row names: b\.png; prompts without an image: q; --partial"):
        matched(tmp_path, ["a.png", "b.png"], ["x"], prompts=tmp_path / "t.csv")


def test_table_without_a_file_column_is_matched_by_name_and_a_wrong_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,caption,picture\na,A,one.png\n")
    assert pairs(matched(tmp_path, ["a.png"], ["x"], prompts=tmp_path / "t.csv")) == [("a.png", "a", 1)]
    with pytest.raises(ScoringError, match=r't\.csv: unknown column "pictures"; nearest: picture'):
        match_folder(tmp_path / "images", tmp_path / "t.csv", match="pictures")
    with pytest.raises(ScoringError, match="no image belongs to a prompt"):
        match_folder(tmp_path / "images", tmp_path / "t.csv", match="picture")


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("file,text\na.png,A\na.png,B\n", ScoringError, r"rows of several prompts name one image: a\.png"),
        ("file,text\n,A\n", PromptError, r't\.csv:2: column "file" names no file'),
        ("file,id,text\na.png,1,A\nb.png,1,B\n", PromptError, 'id "1" already stands for another text'),
        ("file,words\na.png,A\n", ScoringError, "none of the columns text, prompt, caption is there"),
        ("file,text\n", PromptError, "there is no prompt"),
    ],
)
def test_table_that_says_too_much_or_too_little_is_refused(
    tmp_path: Path, table: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(error, match=message):
        matched(tmp_path, ["a.png", "b.png"], ["x"], prompts=tmp_path / "t.csv")


def test_text_file_has_no_column_to_match_by(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a sign\n")
    with pytest.raises(ScoringError, match="has no columns to match by"):
        matched(tmp_path, ["a.png"], ["x"], prompts=tmp_path / "p.txt", match="file")


def test_unreadable_folder_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "prompts.txt").write_text("a sign\n")
        (folder / "closed").mkdir(mode=0o000)
        own = os.geteuid()
        if own == 0:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(ScoringError, match="closed: cannot be read: Permission denied"):
                match_folder(folder / "closed", folder / "prompts.txt")
        finally:
            os.seteuid(own)
