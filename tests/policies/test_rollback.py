"""When a loss explodes or is no number: back to the last checkpoint at half the learning rate, a few times, then the end."""

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.policies.small_runs import rows
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.records import read_rows
from xomni_rl.policies.settings import SettingsError, TrainerSettings
from xomni_rl.policies.trainer import TrainingError
from xomni_rl.stack.stack import Stack

Change = Callable[..., dict[str, Any]]
RATE = 3e-4
MEASURED = {"time": None, "memory": None}
ALWAYS = range(1, 99)


class Disturbed(StackPolicy):
    """A policy that is disturbed in some updates (counted from 1, those that are repeated too), and killed in one.

    Args:
        loss: "nan", or "huge" for importance ratios of e¹⁰.
    """

    def __init__(self, stack: Stack, loss: str, updates: Collection[int], killed_in: int | None = None) -> None:
        super().__init__(stack)
        self.loss, self.updates, self.killed_in, self.count = loss, updates, killed_in, 0

    def logprobs(self, batch: Any, *, with_entropy: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        logprobs, entropy = super().logprobs(batch, with_entropy=with_entropy)
        self.count += 1
        if self.count == self.killed_in:
            raise KeyboardInterrupt
        if self.count in self.updates:
            logprobs = logprobs * math.nan if self.loss == "nan" else logprobs + 10.0
        return logprobs, entropy


@pytest.fixture
def rolling(changed: Change) -> Change:
    """rolling(steps=4, loss_action="warn", …): whatever happens is rolled back, unless said otherwise."""

    def make(steps: int = 3, every: int | None = 1, algorithm: dict[str, Any] | None = None, **alarms: Any) -> dict[str, Any]:
        guard = {"loss_limit": 100.0, "loss_action": "rollback", "nonfinite_action": "rollback"}
        return changed(
            algorithm=algorithm or {"name": "grpo", "options": {}},
            trainer__steps=steps,
            trainer__warmup_steps=0,
            trainer__evaluate_every=None,
            trainer__checkpoint_every=every,
            trainer__alarms=guard | alarms,
        )

    return make


def rates(config: dict[str, Any]) -> list[tuple[int, float]]:
    return [(row["step"], row["learning_rate"]) for row in rows(config)]


def alarms(config: dict[str, Any]) -> list[dict[str, Any]]:
    return read_rows(Path(config["run"]) / "alarms.jsonl")


@pytest.mark.parametrize(
    ("loss", "reason"),
    [("nan", "step 2: the loss is nan"), ("huge", "loss_limit: the loss is ")],
)
def test_disturbed_step_is_repeated_at_half_the_rate(run, stack: Stack, rolling: Change, loss: str, reason: str) -> None:
    config = rolling()
    summary = run(config, Disturbed(stack, loss, {2}))
    assert (summary.status, summary.steps) == ("finished", 3)
    assert rates(config) == [(1, RATE), (2, RATE / 2), (3, RATE / 2)]
    (row,) = alarms(config)
    assert (row["step"], row["alarm"]) == (1, "rollback")
    assert row["message"].startswith(f"went back from step 2 to step 1 at half the learning rate: {reason}")
    assert summary.alarms == {"rollback": 1}
    tables = sorted(path.name for path in (Path(config["run"]) / "rollouts").iterdir())
    assert tables == [f"step_00000{step}.parquet" for step in (1, 2, 3)]


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "ppo", "options": {}},
        {"name": "grpo", "options": {"kl_coef": 0.01, "reference": "ema", "reference_decay": 0.5}},
    ],
    ids=["critic", "average"],
)
def test_going_back_restores_all_that_the_step_started_from(run, stack: Stack, rolling: Change, algorithm) -> None:
    config = rolling(steps=2, algorithm=algorithm)
    run(config | {"run": config["run"] + "_calm"}, StackPolicy(stack))
    run(config, Disturbed(stack, "huge", {2}))
    calm, repeated = (rows(config | {"run": config["run"] + end})[1] for end in ("_calm", ""))
    assert repeated["learning_rate"] == calm["learning_rate"] / 2
    same = calm.keys() - {"time", "memory", "learning_rate"}  # all of it measured before the rate matters
    assert {name: repeated[name] for name in same} == {name: calm[name] for name in same}


def test_records_after_the_checkpoint_are_taken_back(run, stack: Stack, rolling: Change) -> None:
    config = rolling(steps=4, every=2)
    run(config, Disturbed(stack, "huge", {4}))
    # steps 1 to 3 were recorded, 4 exploded: back to 2; 3 and 4 are done again
    assert rates(config) == [(1, RATE), (2, RATE), (3, RATE / 2), (4, RATE / 2)]
    assert [(row["step"], row["alarm"]) for row in alarms(config)] == [(2, "rollback")]


def test_without_a_checkpoint_it_goes_back_to_the_start(run, stack: Stack, rolling: Change) -> None:
    config = rolling(steps=2, every=None)
    run(config, Disturbed(stack, "nan", {1, 3}))  # the first step, and its second: update 2 is step 1 again, 3 is step 2
    assert rates(config) == [(1, RATE / 4), (2, RATE / 4)]
    assert [row["message"].partition(" at ")[0] for row in alarms(config)] == [
        "went back from step 1 to step 0",
        "went back from step 2 to step 0",
    ]
    assert (Path(config["run"]) / "checkpoints/step_000000").is_dir()


def test_number_that_never_becomes_finite_ends_the_run(run, stack: Stack, rolling: Change) -> None:
    config = rolling(max_rollbacks=2)
    with pytest.raises(TrainingError, match=r"step 2: the loss is nan .* \(rollbacks before: 2\)"):
        run(config, Disturbed(stack, "nan", ALWAYS[1:]))
    summary = json.loads((Path(config["run"]) / "summary.json").read_text())
    assert summary["status"].startswith("stopped: step 2: the loss is nan")
    assert summary["status"].endswith("(rollbacks before: 2)")
    assert summary["alarms"]["rollback"] == 2
    assert rates(config) == [(1, RATE)]


def test_loss_that_keeps_exploding_ends_the_run(run, stack: Stack, rolling: Change) -> None:
    config = rolling(max_rollbacks=1)
    summary = run(config, Disturbed(stack, "huge", ALWAYS[1:]))
    assert summary.steps == 2
    assert summary.status.startswith("stopped: loss_limit: the loss is ")
    assert summary.status.endswith("(rollbacks before: 1)")
    assert summary.alarms["rollback"] == 1


@pytest.mark.parametrize(("action", "status", "steps"), [("stop", "stopped: loss_limit", 2), ("warn", "finished", 3)])
def test_loss_beyond_its_limit_stops_or_warns(run, stack: Stack, rolling: Change, action, status, steps) -> None:
    config = rolling(loss_action=action, nonfinite_action="stop")
    summary = run(config, Disturbed(stack, "huge", {2}))
    assert summary.status.startswith(status)
    assert summary.steps == steps
    assert summary.alarms["loss_limit"] == 1
    assert [row["step"] for row in alarms(config) if row["alarm"] == "loss_limit"] == [2]
    assert {rate for _, rate in rates(config)} == {RATE}
    assert not (Path(config["run"]) / "checkpoints/step_000000").exists()  # nothing can roll back


def test_run_killed_after_going_back_goes_on_at_half_the_rate(run, stack: Stack, rolling: Change) -> None:
    config = rolling()
    run(config | {"run": config["run"] + "_whole"}, Disturbed(stack, "huge", {2}))
    with pytest.raises(KeyboardInterrupt):
        run(config, Disturbed(stack, "huge", {2}, killed_in=3))
    run(config | {"resume": config["run"]}, StackPolicy(stack))
    whole = config | {"run": config["run"] + "_whole"}
    assert [row | MEASURED for row in rows(config)] == [row | MEASURED for row in rows(whole)]
    assert alarms(config) == alarms(whole)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"loss_action": "rolback"}, 'loss_action must be "warn" or "stop" or "rollback"'),
        ({"nonfinite_action": "warn"}, 'nonfinite_action must be "stop" or "rollback"'),
        ({"max_rollbacks": -1}, "max_rollbacks must be a whole number of 0 or more"),
    ],
)
def test_guards_setting_out_of_range_is_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        TrainerSettings.from_config({"trainer": {"alarms": setting}})
