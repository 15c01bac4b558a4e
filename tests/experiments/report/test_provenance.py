"""A table says where its runs come from, and warns when they were not made or scored by the same code."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xomni_rl.experiments.ablation.comparison import compare
from xomni_rl.experiments.ablation.tables import markdown
from xomni_rl.experiments.report.provenance import provenance, warnings

WriteRun = Callable[..., Path]


def write_first(folder: Path, tokens: list[list[int]], exact: list[float], commit: str = "abc") -> Path:
    (folder / "heldout").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"commit": commit}))
    rows = [
        {"prompt_id": str(i), "index": 0, "tokens": t, "metric_ocr_exact": e}
        for i, (t, e) in enumerate(zip(tokens, exact, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "heldout" / "step_000000.parquet")
    return folder


def test_every_run_is_named_with_seed_steps_status_and_commit(write_run: WriteRun) -> None:
    folders = [write_run(f"seed{seed}", seed=seed) for seed in range(2)]
    assert provenance({"grpo": folders}) == [
        "- grpo: `seed0` (seed 0, 20 steps, finished, commit 0123456789+changes)",
        "- grpo: `seed1` (seed 1, 20 steps, finished, commit 0123456789+changes)",
    ]


def test_same_code_and_scores_give_no_warning(tmp_path: Path) -> None:
    folders = [write_first(tmp_path / name, [[1, 2], [3, 4]], [0.0, 1.0]) for name in "ab"]
    assert warnings({"grpo": folders}) == []


def test_same_tokens_scored_differently_are_reported_with_their_share(tmp_path: Path) -> None:
    # Of the samples, 0 and 1 have equal tokens in both runs; only 1 changed its score: one of two.
    one = write_first(tmp_path / "one", [[1, 2], [3, 4], [5, 6]], [0.0, 1.0, 0.0])
    two = write_first(tmp_path / "two", [[1, 2], [3, 4], [7, 8]], [0.0, 0.0, 1.0])
    (warning,) = warnings({"grpo": [one, two]})
    assert warning.startswith("one and two drew the same tokens before training, but 50.0% of them were scored differently")


def test_other_tokens_may_score_otherwise(tmp_path: Path) -> None:
    one = write_first(tmp_path / "one", [[1, 2]], [0.0])
    two = write_first(tmp_path / "two", [[1, 3]], [1.0])
    assert warnings({"grpo": [one, two]}) == []


@pytest.mark.parametrize(
    ("commits", "words"), [(("abc", "abd"), "different code"), (("abc+changes", "abc+changes"), "changed checkout")]
)
def test_other_or_changed_code_is_named(tmp_path: Path, commits: tuple[str, str], words: str) -> None:
    folders = [write_first(tmp_path / str(i), [[1]], [0.0], commit) for i, commit in enumerate(commits)]
    (warning,) = warnings({"grpo": folders})
    assert words in warning
    assert commits[0] in warning


def test_runs_of_several_folders_are_named_from_the_one_they_are_in(tmp_path: Path) -> None:
    groups = {name: [write_first(tmp_path / name / "0", [[1]], [0.0])] for name in ("a", "b,c=1")}
    assert [line.partition(" (")[0] for line in provenance(groups)] == ["- a: `a/0`", "- b,c=1: `b,c=1/0`"]


def test_table_of_runs_names_them_and_warns(write_run: WriteRun) -> None:
    text = markdown(compare({"grpo": [write_run(f"seed{seed}", seed=seed) for seed in range(2)]}))
    assert "- grpo: `seed1` (seed 1" in text
    assert "**Unfair:** the runs were made by a changed checkout" in text
