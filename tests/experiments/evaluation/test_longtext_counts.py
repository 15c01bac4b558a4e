import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xomni_rl.cli import app
from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.longtext_counts import Counts, counts, read_recognitions, score_recognitions

GOLDEN = Path(__file__).parents[2] / "golden" / "longtext_bench"


def command(path: Path, *options: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["evaluate", "--suite", "longtext", "--recognised", str(path), *options])
    return result.exit_code, result.stdout, result.stderr


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "readings.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_stored_recognitions_score_as_the_public_script_does(language: str):
    code, out, _ = command(GOLDEN / f"{language}.jsonl", "--language", language, "--compat", "published")
    assert code == 0
    assert out.count("\n") == 1
    expected = json.loads((GOLDEN / f"{language}_score.json").read_text())["score"]
    assert json.loads(out)["score"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_stored_row_counts_as_in_the_public_script(language: str):
    lines = (GOLDEN / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = read_recognitions(GOLDEN / f"{language}.jsonl")
    found = [counts(row.recognised, row.ground_truth, language, "published")[:2] for row in rows]
    assert found == [(row["matched"], row["total"]) for row in map(json.loads, lines)]


@pytest.mark.parametrize(
    ("read", "wanted", "language", "published", "fixed"),
    [
        # "sun—moon" is one word as published, two when repaired; the reader wrote a plain dash with spaces.
        ("sun - moon", ["sun—moon"], "en", (0, 1, 2), (2, 2, 2)),
        ("don't", ["don’t"], "en", (1, 1, 1), (1, 1, 1)),  # an apostrophe joins in both
        ("manana", ["mañana"], "en", (0, 1, 1), (0, 1, 1)),  # "maana" against "manana": no match either way
        ("maana", ["mañana"], "en", (1, 1, 1), (0, 1, 1)),  # the misspelling that the public script takes for right
        ("ＯＰＥＮ", ["open"], "en", (0, 1, 0), (1, 1, 1)),  # full-width letters
        ("cafe\u0301", ["café"], "en", (0, 1, 1), (1, 1, 1)),  # the accent as a character of its own
        ("AB 你", ["ab你"], "zh", (1, 3, 3), (3, 3, 3)),  # case of Latin letters in Chinese
        ("カフェ", ["カフェ"], "zh", (0, 0, 0), (3, 3, 3)),  # kana
        ("咖啡bar", ["咖啡 bar"], "en", (0, 2, 1), (3, 3, 3)),  # 咖, 啡, bar
        ("!!!", ["…"], "en", (0, 0, 0), (0, 0, 0)),
    ],
)
def test_repaired_counts(read: str, wanted: list[str], language: str, published: tuple, fixed: tuple):
    assert counts(read, wanted, language, "published") == Counts(*published)
    assert counts(read, wanted, language, "fixed") == Counts(*fixed)


def test_repaired_figures_charge_for_extra_text(tmp_path: Path):
    rows = ['{"ground_truth": ["one two"], "recognised": "one two three four"}', '{"ground_truth": ["six"], "recognised": ""}']
    found = score_recognitions(read_recognitions(written(tmp_path, *rows)), "en", "fixed")
    # matched 2 + 0, wanted 2 + 1, read 4 + 0
    assert found["score"] == pytest.approx(2 / 3)
    assert found["precision"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx(2 * 2 / (3 + 4))


def test_prompt_id_of_null_is_none(tmp_path: Path):
    rows = ['{"ground_truth": ["a"], "recognised": "a"%s}', '{"ground_truth": ["b"], "recognised": "c"%s}']
    for name in ("", ', "prompt_id": null'):
        found = score_recognitions(read_recognitions(written(tmp_path, *(row % name for row in rows))), "en", "published")
        assert (found["low"], found["high"]) == (0.0, 1.0)  # of two prompts; rows of one prompt would have no interval


def test_rows_that_ask_for_nothing_countable_are_counted_apart(tmp_path: Path):
    path = written(tmp_path, '{"ground_truth": ["…"], "recognised": "x"}', '{"ground_truth": ["a"], "recognised": "a"}')
    found = score_recognitions(read_recognitions(path), "en", "published")
    assert (found["score"], found["rows"], found["not_applicable"]) == (1.0, 2, 1)


def test_no_countable_row_at_all_has_no_score(tmp_path: Path):
    code, out, _ = command(written(tmp_path, '{"ground_truth": ["…"], "recognised": "x"}'))
    assert code == 0
    assert json.loads(out)["score"] is None


GOOD = '{"ground_truth": ["a"], "recognised": "a"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nonsense", "not JSON"),
        ("[1]", "expected an object"),
        ('{"recognised": "a"}', 'the key "ground_truth" is missing'),
        ('{"ground_truth": ["a"]}', 'the key "recognised" is missing'),
        ('{"ground_truth": "a", "recognised": "a"}', "must be a list of one or more strings, got 'a'"),
        ('{"ground_truth": [], "recognised": "a"}', "must be a list of one or more strings, got []"),
        ('{"ground_truth": [1], "recognised": "a"}', "must be a list of one or more strings, got [1]"),
        ('{"ground_truth": ["a"], "recognised": null}', '"recognised" must be a string, got None'),
    ],
)
def test_malformed_row_is_named_with_its_line_and_a_remedy(tmp_path: Path, line: str, reason: str):
    path = written(tmp_path, GOOD, "", line)
    with pytest.raises(EvaluationError) as error:
        read_recognitions(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert reason in str(error.value)
    assert 'write each line as {"ground_truth"' in str(error.value)


def test_malformed_row_ends_the_command_with_one_sentence(tmp_path: Path):
    code, out, err = command(written(tmp_path, "nonsense"))
    assert (code, out) == (1, "")
    assert "readings.jsonl:1: not JSON" in err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--language", "fr"], 'unknown language "fr"'),
        (["--compat", "publishd"], 'unknown compat "publishd"; nearest: published'),
        (["--suite", "signs"], "--recognised is for the suite longtext"),
    ],
)
def test_wrong_option_is_one_sentence(tmp_path: Path, options: list[str], reason: str):
    code, out, err = command(written(tmp_path, GOOD), *options)
    assert (code, out) == (1, "")
    assert reason in " ".join(err.split())


def test_file_without_rows_says_so(tmp_path: Path):
    with pytest.raises(EvaluationError, match="there is no recognition in this file"):
        read_recognitions(written(tmp_path))


def test_missing_file_is_one_sentence(tmp_path: Path):
    code, _, err = command(tmp_path / "none.jsonl")
    assert code == 1
    assert "none.jsonl: No such file" in " ".join(err.split())
