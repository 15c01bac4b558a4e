"""The learning rate's schedule, and what options of the loss do when a whole run uses them."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.policies.small_runs import rows, with_reward
from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.policies.update import learning_rate_share
from xomni_rl.stack.stack import Stack

Change = Callable[..., dict[str, Any]]


def test_warm_up_rises_linearly_to_the_whole_rate() -> None:
    assert [learning_rate_share(done, 4, None) for done in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_decay_falls_linearly_to_a_tenth_and_stays() -> None:
    # 1 − 0.9·done/100
    shares = [learning_rate_share(done, 0, 100) for done in (0, 50, 100, 250)]
    assert shares == pytest.approx([1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(("coefficient", "sign"), [(1.0, 1), (-1.0, -1)])
def test_entropy_bonus_moves_entropy_its_way_where_rewards_teach_nothing(
    run, changed: Change, coefficient: float, sign: int
) -> None:
    options = {"entropy_coef": coefficient}
    made = changed(algorithm__options=options, trainer__steps=6, trainer__learning_rate=1e-3, trainer__evaluate_every=None)
    run(with_reward(made, "constant"))
    steps = rows(made)
    assert all(row["skipped"] == 0 for row in steps)
    entropies = [row["entropy"] for row in steps]
    assert 0 < entropies[0] < math.log(512)
    assert sign * (entropies[-1] - entropies[0]) > 0.001


class SamplerWithOldWeights(StackPolicy):
    """A policy whose sampler thinks every token less likely than the trainer does: by a factor of e."""

    def rollout(self, *args: Any, **options: Any) -> RolloutBatch:
        batch = super().rollout(*args, **options)
        return replace(batch, old_logprobs=batch.old_logprobs - 1)


@pytest.mark.parametrize("correction", ["truncated", "masked", "sequence_truncated", "sequence_masked"])
def test_correction_between_like_sampler_and_trainer_changes_nothing(run, changed: Change, correction: str) -> None:
    found = []
    for name in ("none", correction):
        made = changed(algorithm__options={"correction": name}, trainer__steps=1, trainer__evaluate_every=None)
        run(made | {"run": made["run"] + name})
        found.append(rows({"run": made["run"] + name})[-1])
    plain, corrected = found
    assert "sampler_kl" not in plain
    assert corrected["sampler_kl"] == pytest.approx(0, abs=1e-5)
    assert corrected["correction_share"] == 0
    assert corrected["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(("correction", "weight"), [("truncated", 2.0), ("masked", 0.0)])
def test_correction_bounds_the_weight_of_tokens_that_the_sampler_thought_less_likely(
    stack: Stack, run, changed: Change, correction: str, weight: float
) -> None:
    # the weight wants to be e = 2.718, above the cap of 2: cut to the cap, or taken out
    norms = []
    for name in ("none", correction):
        options = {"correction": name, "correction_cap": 2.0}
        made = changed(algorithm__options=options, trainer__steps=1, trainer__evaluate_every=None)
        made["run"] += name
        policy = SamplerWithOldWeights(stack, TrainerSettings.from_config(made).sampling)
        run(made, policy=policy if name != "none" else None)
        norms.append(rows(made)[-1]["grad_norm"])
    assert rows(made)[-1]["correction_share"] == 1
    assert rows(made)[-1]["sampler_kl"] == pytest.approx(math.e - 2, rel=1e-3)  # e^1 - 1 - 1
    assert norms[1] == pytest.approx(weight * norms[0], rel=1e-3, abs=1e-6)
