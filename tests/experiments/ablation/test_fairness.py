"""A comparison says what is equal in all runs, and warns of every difference that makes it unfair."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xomni_rl.experiments.ablation.fairness import check_fairness
from xomni_rl.experiments.ablation.runs import load_run

MakeRun = Callable[..., Path]
SCORES = {0: {"metric_ocr_exact": [0, 1]}, 20: {"metric_ocr_exact": [1, 1]}}


@pytest.fixture
def check(make_run: MakeRun) -> Callable[..., Any]:
    """check(**of the second method's run): the fairness of two methods with a run each."""

    def checked(scores: Any = SCORES, **other: Any) -> Any:
        one, two = make_run("grpo", SCORES), make_run("gspo", scores, **other)
        return check_fairness({"grpo": [load_run(one)], "gspo": [load_run(two)]})

    return checked


def test_equal_runs_are_fair_and_it_says_in_what(check: Callable[..., Any]) -> None:
    found = check(config={"algorithm.name": "gspo"})
    assert found.warnings == []
    assert found.equal == [
        "initial weights",
        "images generated in training (160)",  # 20 steps × 2 prompts × 4 images
        "held-out prompts",
        "evaluation settings",
        "packages and machine",
        "training prompts and their order for equal seeds",
    ]
    assert found.differing == {"algorithm.name": {"grpo": "grpo", "gspo": "gspo"}}


ORDER = "training prompts and their order for equal seeds differ: 00000000 × 2 a step in grpo; "
OTHER_WEIGHTS = {"autoregressive": "b" * 64, "decoder": "d" * 64}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"manifest": {"weights": OTHER_WEIGHTS}}, "initial weights differ: autoregressive aaaaaaaa in grpo; bbbbbbbb in gspo"),
        ({"manifest": {"weights": None}}, "initial weights: not checked, gspo did not record it"),
        ({"manifest": {"prompts.heldout.sha256": "2" * 64}}, "held-out prompts differ: 11111111 in grpo; 22222222 in gspo"),
        (
            {"manifest": {"prompts.train.sha256": "3" * 64}},
            ORDER,
        ),
        ({"config": {"trainer.prompts_per_step": 1}}, ORDER),
        ({"config": {"trainer.group_size": 8}}, "images generated in training differ: 160 in grpo; 320 in gspo"),
        ({"config": {"trainer.evaluation.seed": 1}}, "evaluation settings differ: seed 1,234 in grpo; 1 in gspo"),
        ({"manifest": {"packages": {"torch": "2.9.0"}}}, "packages and machine differ: torch 2.13.0 in grpo; 2.9.0 in gspo"),
        ({"manifest": {"torch_threads": 8}}, "packages and machine differ: torch_threads 1 in grpo; 8 in gspo"),
        ({"manifest": {"commit": "fedcba9876543210"}}, "the runs were made by different code"),
        ({"seed": 5}, "seeds differ: grpo 0; gspo 5"),
        ({"status": "stopped: kl_limit"}, "gspo seed 0: stopped: kl_limit"),
        ({"status": None}, "gspo seed 0: no summary: it was killed, or is still running"),
    ],
)
def test_unfair_difference_is_a_warning(check: Callable[..., Any], change: dict[str, Any], words: str) -> None:
    warnings = check(**change).warnings
    assert [warning for warning in warnings if warning.startswith(words)], warnings


def test_run_that_stopped_early_had_another_budget(check: Callable[..., Any]) -> None:
    found = check(scores={0: SCORES[0], 10: SCORES[20]}, status="max_seconds")
    assert "images generated in training differ: 160 in grpo; 80 in gspo" in found.warnings


def test_reward_trained_on_is_the_evaluation_if_none_is_named(check: Callable[..., Any]) -> None:
    components = {"ocr": {"reward": "ocr", "weight": 0.0}}  # the weight changes no raw score
    found = check(config={"trainer.evaluation.reward": {"components": components, "gates": {}}})
    assert "evaluation settings" in found.equal


def test_settings_that_differ_within_a_method_are_named(make_run: MakeRun) -> None:
    runs = [make_run("a", SCORES), make_run("b", SCORES, seed=1, config={"trainer.learning_rate": 3e-4})]
    found = check_fairness({"mine": [load_run(run) for run in runs]})
    assert found.warnings == ["the runs of mine differ in trainer.learning_rate"]


def test_seed_twice_in_a_method_is_named(make_run: MakeRun) -> None:
    runs = [load_run(make_run(name, SCORES)) for name in "ab"]
    assert check_fairness({"mine": runs}).warnings == ["mine has a seed twice"]
