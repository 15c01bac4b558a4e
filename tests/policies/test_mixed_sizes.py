"""Prompts of several sizes in one batch: every sample as it is alone, and padding that teaches nothing."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from typer.testing import CliRunner

from tests.policies.small_runs import rows
from xomni_rl.cli import app
from xomni_rl.envs.groups import chosen_groups, joined
from xomni_rl.envs.packing import packed, packed_pictures, unpacked
from xomni_rl.envs.rollout import RolloutBatch, rollout
from xomni_rl.policies.algorithms.base import build_algorithm
from xomni_rl.policies.policy import StackPolicy, TokenBatch
from xomni_rl.policies.settings import TrainerSettings
from xomni_rl.policies.update import Experience, Learner
from xomni_rl.prompts import Prompt
from xomni_rl.stack.sampler import PADDING, SamplingConfig
from xomni_rl.stack.stack import Stack

WIDE, SMALL = (16, 32), (16, 16)  # px: 2 × 4 = 8 and 2 × 2 = 4 tokens
PLAIN, GUIDED = SamplingConfig(), SamplingConfig(cfg_scale=2.0)


@pytest.fixture
def mixed() -> list[Prompt]:
    """Four prompts of different lengths, two of each size, taking turns."""
    texts = ("a red sign", 'a blue sign that says "LONGER TEXT"', '"Z" on green', "blue")
    return [Prompt(id=f"m{i}", text=text, size=(WIDE, SMALL)[i % 2]) for i, text in enumerate(texts)]


@pytest.mark.parametrize("sampling", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_every_sample_of_a_mixed_batch_is_what_it_is_among_its_own_size(
    stack: Stack, mixed: list[Prompt], cheap_reward, sampling: SamplingConfig
) -> None:
    options: dict[str, Any] = {"group_size": 2, "seed": 3, "sampling": sampling}
    together = rollout(stack, mixed, cheap_reward(), **options)
    # rows of m0, m2 are 0, 1, 4, 5; of m1, m3 the others
    for chosen, own, tokens in (([0, 2], [0, 1, 4, 5], 8), ([1, 3], [2, 3, 6, 7], 4)):
        alone = rollout(stack, [mixed[i] for i in chosen], cheap_reward(), **options)
        assert torch.equal(together.tokens[own, :tokens], alone.tokens)
        assert (together.tokens[own, tokens:] == PADDING).all()
        assert torch.equal(together.old_logprobs[own, :tokens], alone.old_logprobs)
        assert torch.equal(together.entropy[own, :tokens], alone.entropy)
        assert all(np.array_equal(together.images[row], image) for row, image in zip(own, alone.images, strict=True))
        assert np.array_equal(together.rewards.scores[own], alone.rewards.scores)
    assert [image.shape[:2] for image in together.images] == [WIDE, WIDE, SMALL, SMALL] * 2


def test_generated_images_of_several_sizes_are_those_of_each_alone(stack: Stack, mixed: list[Prompt]) -> None:
    made = stack.generate(mixed, seed=1)
    for row, prompt in enumerate(mixed):
        alone = stack.generate([prompt], seed=1)
        there = made.tokens[row] != PADDING
        assert torch.equal(made.tokens[row][there], alone.tokens[0])
        assert np.array_equal(made.images[row], alone.images[0])


@pytest.mark.parametrize("sampling", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_trainer_scores_a_mixed_batch_as_its_sampler_did(
    stack: Stack, mixed: list[Prompt], cheap_reward, sampling: SamplingConfig
) -> None:
    policy = StackPolicy(stack, sampling)
    batch = policy.rollout(mixed, cheap_reward(), group_size=2, seed=0)
    logprobs, entropy = policy.logprobs(TokenBatch.of(batch), with_entropy=True)
    torch.testing.assert_close(logprobs.detach(), batch.old_logprobs, atol=3e-5, rtol=0)
    assert entropy is not None
    torch.testing.assert_close(entropy.detach(), batch.entropy, atol=3e-5, rtol=0)


class KeepingLearner(Learner):
    """Remembers the gradient that it steps along."""

    gradient: dict[str, Tensor]

    def _clipped_norm(self, groups: np.ndarray) -> float:
        parameters = self.policy.model.named_parameters()
        self.gradient = {name: value.grad.clone() for name, value in parameters if value.grad is not None}
        return super()._clipped_norm(groups)


def gradient(stack: Stack, batch: RolloutBatch, changes: dict[str, Any], options: dict[str, Any]) -> dict[str, Tensor]:
    """What one optimizer step follows; the weights are put back."""
    AcceleratorState._reset_state()
    settings = TrainerSettings.from_config({"trainer": {"max_grad_norm": None, **changes}})
    weights = copy.deepcopy(stack.model.state_dict())
    learner = KeepingLearner(StackPolicy(stack), build_algorithm("grpo", options), settings, Accelerator(cpu=True))
    learner.update(with_advantages(learner, batch), np.random.default_rng(0))
    stack.model.load_state_dict(weights)
    return learner.gradient


def with_advantages(learner: Learner, batch: RolloutBatch) -> Experience:
    """Advantages that are not the batch's, so that it may be cut: 1, −1 in every group."""
    experience = learner.experience(batch)
    advantages = torch.tensor([1.0, -1.0]).repeat(len(batch.input_ids))
    return replace(experience, advantages=advantages, keep=torch.ones(len(advantages), dtype=torch.bool))


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize(
    ("aggregation", "shares"),
    [
        # 4 rollouts of 8 tokens and 4 of 4: of 48 tokens 32 and 16, of 8 rollouts 4 and 4
        ("token_mean", (32 / 48, 16 / 48)),
        ("sequence_mean", (1 / 2, 1 / 2)),
        # Σ / (rollouts · 8): half of what it is over its own 8 tokens, and a quarter of what it is over its own 4
        ("constant_length", (1 / 2, 1 / 4)),
    ],
)
def test_gradient_of_a_mixed_step_is_the_sum_of_its_sizes(
    stack: Stack, mixed: list[Prompt], cheap_reward, aggregation: str, shares: tuple[float, float], accumulation: int
) -> None:
    options = {"aggregation": aggregation, "kl_coef": 0.1, "entropy_coef": 0.01}
    batch = rollout(stack, mixed, cheap_reward(), group_size=2, seed=0)
    whole = gradient(stack, batch, {"accumulation": accumulation}, options)
    parts = [
        rollout(stack, [prompt for prompt in mixed if prompt.size == size], cheap_reward(), group_size=2, seed=0)
        for size in (WIDE, SMALL)
    ]
    wide, small = (gradient(stack, part, {}, options) for part in parts)
    assert whole.keys() == wide.keys() == small.keys()
    assert any(value.abs().max() > 1e-4 for value in whole.values())
    for name, value in whole.items():
        torch.testing.assert_close(value, shares[0] * wide[name] + shares[1] * small[name], atol=1e-6, rtol=1e-4)


def test_mixed_batch_survives_cutting_joining_and_packing(stack: Stack, mixed: list[Prompt], cheap_reward) -> None:
    batch = rollout(stack, mixed, cheap_reward(), group_size=2, seed=0)
    again = joined([chosen_groups(batch, [0, 1]), chosen_groups(batch, [2]), chosen_groups(batch, [3])])
    sent = unpacked(*packed(batch), packed_pictures(batch), mixed, 2, torch.device("cpu"))
    for other in (again, sent):
        assert torch.equal(other.tokens, batch.tokens)
        assert torch.equal(other.old_logprobs, batch.old_logprobs)
        assert all(np.array_equal(ours, its) for ours, its in zip(other.images, batch.images, strict=True))


@pytest.fixture
def mixed_config(config: dict[str, Any]) -> dict[str, Any]:
    """The small run with prompts of two sizes, taking turns."""
    for name in ("path", "heldout_path"):
        file = Path(config["prompts"]["options"][name])
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [line | {"size": (WIDE, SMALL)[i % 2]} for i, line in enumerate(lines)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return config


@pytest.mark.parametrize(
    ("name", "options"), [("grpo", {}), ("ppo", {}), ("remax", {}), ("dapo", {}), ("grpo", {"kl_coef": 0.1, "kl_in": "reward"})]
)
def test_run_of_prompts_of_two_sizes_ends(run, mixed_config: dict[str, Any], name: str, options: dict[str, Any]) -> None:
    mixed_config["algorithm"] = {"name": name, "options": options}
    mixed_config["trainer"]["steps"] = 2
    assert run(mixed_config).status == "finished"
    folder = Path(mixed_config["run"])
    for table in (*folder.glob("rollouts/*.parquet"), *folder.glob("heldout/*.parquet")):
        assert {len(row) for row in pq.read_table(table)["tokens"].to_pylist()} <= {8, 4}
    steps = [row for row in rows(mixed_config) if "logprob_max_delta" in row]
    assert all(row["logprob_max_delta"] < 1e-4 for row in steps)
    assert all(row["ratio_max_deviation"] < 1e-4 for row in steps if "ratio_max_deviation" in row)


def test_trl_takes_the_steps_that_the_native_engine_takes(run, mixed_config: dict[str, Any]) -> None:
    pytest.importorskip("trl")
    found = []
    for engine in ("native", "trl"):
        made = copy.deepcopy(mixed_config)
        made["trainer"] |= {"engine": engine, "steps": 2, "evaluate_every": None}
        made["run"] += engine
        run(made)
        found.append([row["grad_norm"] for row in rows(made) if "grad_norm" in row])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert len(found[0]) > 0


def test_train_command_learns_from_signs_of_two_sizes_read_by_the_ocr(tmp_path: Path) -> None:
    words = ("K7AX", "B2", "QZ", "M4RT")
    for split, colour in (("train", "red"), ("heldout", "blue")):
        lines = [
            {"id": f"{split}{i}", "text": f'a {colour} sign that says "{word}"', "texts": [word], "size": [32, (96, 64)[i % 2]]}
            for i, word in enumerate(words)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = [f"prompts.options.path={tmp_path}/train.jsonl", f"prompts.options.heldout_path={tmp_path}/heldout.jsonl"]
    sizes = ["trainer.steps=2", "trainer.prompts_per_step=4", "trainer.group_size=2", "trainer.evaluate_every=1"]
    command = ["train", "prompts=file", *files, "reward=ocr", *sizes, f"run={tmp_path}/run"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet")
    # 4 rows of 12 tokens are 48, 4 of 8 are 32; two groups of two of each
    assert sorted(len(row) for row in table["tokens"].to_pylist()) == [32] * 4 + [48] * 4
    heldout = pq.read_table(tmp_path / "run" / "heldout" / "step_000000.parquet")
    assert set(heldout["prompt_id"].to_pylist()) == {f"heldout{i}" for i in range(4)}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") >= 8  # four held-out pictures, before and after
