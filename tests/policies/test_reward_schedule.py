"""Scheduled weights in a training run: rollouts follow them, evaluation does not, and a run that goes on keeps them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from xomni_rl.experiments.run import build_parts
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.records import read_rows
from xomni_rl.policies.trainer import train

Change = Callable[..., dict[str, Any]]
SCHEDULE = {"1": 1.0, "3": 0.5, "4": 0.0}
# Weight 2 × the factor at steps 1 to 5: linear from 1 at step 1 to 0.5 at step 3, then to 0 at step 4, where it stays.
WEIGHTS = {1: 2.0, 2: 1.5, 3: 1.0, 4: 0.0, 5: 0.0}


@pytest.fixture
def scheduled(changed: Change) -> dict[str, Any]:
    """Five steps with redness under a schedule, and a constant under none."""
    config = changed(trainer__steps=5)
    file = config["reward"]["components"]["red"]["reward"].rpartition(":")[0]
    config["reward"]["components"] = {
        "red": {"reward": f"{file}:redness", "weight": 2.0, "schedule": SCHEDULE},
        "steady": {"reward": f"{file}:constant", "weight": 1.0},
    }
    return config


@pytest.fixture
def trained_weights(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, list[float]]]:
    """(whether it is a training rollout, weights of its CompositeResult), in the order of rollouts."""
    seen: list[tuple[bool, list[float]]] = []
    rollout = StackPolicy.rollout

    def watched(self: StackPolicy, *arguments: Any, **options: Any) -> Any:
        batch = rollout(self, *arguments, **options)
        seen.append((options.get("sampling") is None, batch.rewards.weights.tolist()))
        return batch

    monkeypatch.setattr(StackPolicy, "rollout", watched)
    return seen


def start(config: dict[str, Any]) -> list[dict[str, Any]]:
    train(config, **build_parts(config), console=Console(file=io.StringIO()))
    return read_rows(Path(config["run"]) / "metrics.jsonl")


def test_weights_of_rollouts_follow_the_schedule_and_evaluation_has_full_weights(
    scheduled: dict[str, Any], trained_weights: list[tuple[bool, list[float]]]
) -> None:
    rows = start(scheduled)
    training = [weights for is_training, weights in trained_weights if is_training]
    np.testing.assert_allclose(training, [[WEIGHTS[step], 1.0] for step in range(1, 6)])
    evaluation = [weights for is_training, weights in trained_weights if not is_training]
    assert evaluation == [[2.0, 1.0]] * len(evaluation)
    assert evaluation
    assert {row["step"]: row["weight/red"] for row in rows if "weight/red" in row} == pytest.approx(WEIGHTS)
    assert not [row for row in rows if "weight/steady" in row]


def test_run_that_goes_on_keeps_the_schedule(scheduled: dict[str, Any], tmp_path: Path) -> None:
    whole = start(scheduled)
    halved = scheduled | {"run": str(tmp_path / "halved"), "trainer": scheduled["trainer"] | {"steps": 2}}
    start(halved)
    rows = start(json.loads(json.dumps(scheduled | {"run": None, "resume": str(tmp_path / "halved")})) | {"run": halved["run"]})
    assert [{k: v for k, v in row.items() if k not in ("time", "memory") and not k.startswith("heldout")} for row in rows] == [
        {k: v for k, v in row.items() if k not in ("time", "memory") and not k.startswith("heldout")} for row in whole
    ]
