"""Sweeps become runs with folders; calling again adds to them, and other settings are refused."""

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from xomni_rl.config import ConfigError
from xomni_rl.experiments.ablation.plan import PLAN, AblationError, Plan, extend, parse, quoted, read_plan
from xomni_rl.policies.records import write_json


def planned(*overrides: str, saved: Plan | None = None) -> tuple[Plan, list[str]]:
    """The plan, and the folders of the runs that were asked for."""
    plan, runs, _ = extend(parse(overrides), saved)
    return plan, [run.folder for run in runs]


def test_swept_keys_are_variants_and_seeds_replicate_them() -> None:
    plan, folders = planned("algorithm=grpo,dr_grpo", "seed=0,1", "run=runs/a")
    assert folders == ["grpo/0", "grpo/1", "dr_grpo/0", "dr_grpo/1"]
    assert (plan.variants, plan.axes) == (["grpo", "dr_grpo"], ["algorithm"])
    assert plan.runs[3].overrides == ["algorithm=dr_grpo", "seed=1"]


def test_every_key_can_be_swept_and_names_the_variant() -> None:
    _, folders = planned("algorithm=grpo,dr_grpo", "trainer.learning_rate=1e-4,3e-4", "trainer.steps=5")
    assert folders == [
        "grpo,learning_rate=0.0001/0",
        "grpo,learning_rate=0.0003/0",
        "dr_grpo,learning_rate=0.0001/0",
        "dr_grpo,learning_rate=0.0003/0",
    ]


def test_keys_with_one_last_part_are_named_whole() -> None:
    plan, _ = planned("trainer.sampling.min_p=0,0.1", "trainer.evaluation.sampling.min_p=0,0.1")
    assert plan.variants[0] == "trainer.sampling.min_p=0,trainer.evaluation.sampling.min_p=0"


def test_seeds_alone_make_one_variant_called_after_the_algorithm() -> None:
    assert planned("seed=range(0,3)", "algorithm=dr_grpo")[1] == ["dr_grpo/0", "dr_grpo/1", "dr_grpo/2"]


def test_glob_sweeps_over_all_choices_of_a_group() -> None:
    assert {"grpo", "dr_grpo"} <= set(planned("algorithm=glob(*)")[0].variants)


def test_name_that_is_no_folder_name_gets_one() -> None:
    plan, folders = planned("reward=ocr,my/rewards.py:red,my/rewards.py-red:red")
    assert plan.variants == ["ocr", "my/rewards.py:red", "my/rewards.py-red:red"]
    assert folders == ["ocr/0", "my-rewards.py-red/0", "my-rewards.py-red-red/0"]
    assert len({run.config_sha256 for run in plan.runs}) == 3


def test_values_that_mean_the_same_are_one_run() -> None:
    assert planned("trainer.max_grad_norm=1,1.0,2")[1] == ["max_grad_norm=1/0", "max_grad_norm=2/0"]


def test_further_choices_are_added_and_known_ones_kept() -> None:
    plan, _ = planned("algorithm=grpo", "seed=0,1", "trainer.steps=5")
    first = list(plan.runs)
    plan, folders = planned("algorithm=grpo,dr_grpo", "seed=0,1,2", "trainer.steps=5", saved=plan)
    assert folders == ["grpo/0", "grpo/1", "grpo/2", "dr_grpo/0", "dr_grpo/1", "dr_grpo/2"]
    assert plan.runs[:2] == first


def test_axis_given_one_value_later_is_still_an_axis() -> None:
    plan, _ = planned("algorithm=grpo,dr_grpo", "trainer.steps=5")
    assert planned("algorithm=dr_grpo", "seed=7", "trainer.steps=5", saved=plan)[1] == ["dr_grpo/7"]


def test_new_axis_keeps_the_variant_that_had_its_value_already() -> None:
    plan, _ = planned("algorithm=grpo,dr_grpo", "trainer.learning_rate=3e-4")
    _, folders = planned("algorithm=grpo", "trainer.learning_rate=3e-4,1e-3", "seed=0,1", saved=plan)
    assert folders == ["grpo/0", "grpo/1", "grpo,learning_rate=0.001/0", "grpo,learning_rate=0.001/1"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm=grpo", "trainer.steps=6"], "trainer.steps was 5 and is 6"),
        (["algorithm=grpo"], "trainer.steps was 5 and is 400"),
        (
            ["algorithm=grpo", "trainer.steps=5", "algorithm.options.clip_low=0.1"],
            "algorithm.options.clip_low was 0.2 and is 0.1",
        ),
        (["algorithm=grpo", "trainer.steps=5", "+reward.gates={ocr: 'ocr > 0'}"], "reward.gates.ocr was None and is 'ocr > 0'"),
    ],
)
def test_other_settings_are_refused_and_named(overrides: list[str], words: str) -> None:
    plan, _ = planned("algorithm=grpo,dr_grpo", "trainer.steps=5")
    with pytest.raises(AblationError, match="the ablation was begun with other settings") as error:
        planned(*overrides, saved=plan)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["resume=runs/a"], AblationError, "call the ablation again"),
        (["run=a,b"], AblationError, "run= names the one folder"),
        (["trainer.learning_rate=interval(0,1)"], AblationError, "is no list of values"),
        (["algorithm=grpo,grop"], ConfigError, "nearest: grpo"),
        (["trainer.stpes=1,2"], ConfigError, "nearest: trainer.steps"),
        (["trainer.steps=1,0"], ConfigError, "trainer.steps must be a whole number of at least 1, but is 0"),
        (["seed"], ConfigError, "override cannot be read"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(overrides: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        planned(*overrides)


def test_folder_of_ones_own_configurations_has_choices_too(tmp_path: Path) -> None:
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "mine.yaml").write_text("name: grpo\noptions: {clip_high: 0.4}\n")
    plan, _, configs = extend(parse(["algorithm=grpo,mine", "reward=ocr"]), None, tmp_path)
    assert configs["mine/0"]["algorithm"] == {"name": "grpo", "options": {"clip_high": 0.4}}
    assert plan.variants == ["grpo", "mine"]


def test_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plan, _ = planned("algorithm=grpo,dr_grpo", "seed=0,1")
    write_json(tmp_path / PLAN, plan.record())
    assert read_plan(tmp_path) == plan
    assert read_plan(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"format": 2}), json.dumps({"format": 1, "runs": [{}]})])
def test_damaged_plan_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(AblationError, match=r"ablation\.json cannot be read"):
        read_plan(tmp_path)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\r", exclude_categories=("Cc", "Cs")), min_size=1))
def test_quoted_text_is_read_back_by_hydra(text: str) -> None:
    assert OverridesParser.create().parse_override(f"run={quoted(text)}").value() == text
