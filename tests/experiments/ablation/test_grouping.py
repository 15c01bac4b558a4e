"""Runs that differ in nothing but the seed are one method, named by the fewest settings that tell it from the others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xomni_rl.experiments.ablation.grouping import group_runs
from xomni_rl.experiments.report.data import ReportError

MakeRun = Callable[..., Path]
SCORES = {0: {"metric_ocr_exact": [0, 1]}, 1: {"metric_ocr_exact": [1, 1]}}


def names(folders: list[Path], tmp_path: Path) -> dict[str, list[str]]:
    return {name: [str(path.relative_to(tmp_path)) for path in found] for name, found in group_runs(folders).items()}


def test_seeds_of_one_setting_are_one_method_called_after_its_algorithm(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run(f"s{seed}", SCORES, seed=seed) for seed in (3, 1)]
    assert names(folders, tmp_path) == {"grpo": ["s3", "s1"]}


def test_algorithms_are_told_apart_by_name_alone(make_run: MakeRun, tmp_path: Path) -> None:
    other = {"algorithm.name": "gspo", "algorithm.options": {"clip_low": 3e-4, "length": "mean"}}
    folders = [make_run("a", SCORES), make_run("b", SCORES, config=other), make_run("c", SCORES, seed=1)]
    assert names(folders, tmp_path) == {"grpo": ["a", "c"], "gspo": ["b"]}


def test_settings_beside_the_algorithm_are_named_where_they_are_needed(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [
        make_run("a", SCORES),
        make_run("b", SCORES, config={"trainer.learning_rate": 3e-4}),
        make_run("c", SCORES, config={"reward.components": {"clip": {"weight": 1}, "ocr": {"weight": 1}}}),
        make_run("d", SCORES, config={"reward.components": {"clip": {"weight": 0}, "ocr": {"weight": 1}}}),
    ]
    # reward, then learning rate, then what still tells the first from the last: the weight of a component only logged.
    assert list(names(folders, tmp_path)) == [
        "ocr,learning_rate=0.0001",
        "ocr,learning_rate=0.0003",
        "clip+ocr,learning_rate=0.0001,clip.weight=1",
        "ocr,learning_rate=0.0001,clip.weight=0",
    ]


def test_same_run_twice_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    one = make_run("one", SCORES)
    with pytest.raises(ReportError, match="given twice"):
        group_runs([one, tmp_path / "." / "one"])
    with pytest.raises(
        ReportError, match=r"two and .*one have the same settings and seed|one and .*two have the same settings"
    ):
        group_runs([one, make_run("two", SCORES)])


def test_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="is no run folder"):
        group_runs([tmp_path])
    with pytest.raises(ReportError, match="is not a folder"):
        group_runs([tmp_path / "nowhere"])
