"""Losses and advantages against TRL's own, over random cases: `GRPOTrainer._compute_loss` and its scoring of rollouts.

The trainer is TRL's, whole; only what it would ask a model for (log-probabilities, entropies, completions) is handed to it. TRL
multiplies by the mask where ours selects, so masked entries hold finite numbers here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from xomni_rl.policies.advantages import gdpo_advantages, group_advantages
from xomni_rl.policies.losses import policy_loss
from xomni_rl.policies.losses.surrogates import cispo, clipped, gspo, gspo_token, sapo
from xomni_rl.stack.stack import Stack

CASES = 32
GROUP = 4


@dataclass
class Case:
    """Random inputs of a loss, float64: advantages [N], the rest [N, T]; every row of the mask has a counted token."""

    logprobs: Tensor
    old: Tensor
    advantages: Tensor
    mask: Tensor
    reference: Tensor
    sampler: Tensor
    entropy: Tensor


def draw(seed: int) -> Case:
    """One or two groups of four, two to nine tokens; ratios from about a quarter to four, and rows of different lengths."""
    source = np.random.default_rng(seed)
    rows, tokens = GROUP * int(source.integers(1, 3)), int(source.integers(2, 10))
    old = -4 * source.random((rows, tokens)) - 0.1
    lengths = source.permutation(np.append(source.integers(1, tokens + 1, rows - 1), tokens))  # TRL cuts at the longest
    arrays = {
        "logprobs": old + 0.6 * source.standard_normal((rows, tokens)),
        "old": old,
        "advantages": source.standard_normal(rows) * (source.random(rows) > 0.1),
        "mask": np.arange(tokens) < lengths[:, None],
        "reference": old + 0.4 * source.standard_normal((rows, tokens)),
        "sampler": old + 0.5 * source.standard_normal((rows, tokens)),
        "entropy": source.random((rows, tokens)),
    }
    # TRL hands the sampler's on as float32, so all are numbers that float32 has
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    return Case(**{name: value if name == "mask" else value.float().double() for name, value in tensors.items()})


class Oracle(GRPOTrainer):
    """TRL's trainer, asked for one loss or for the advantages of one batch.

    Args:
        folder: TRL insists on one.
        rewards: float [N, K] to give out, NaN = None.
        options: of GRPOConfig.
    """

    def __init__(self, folder: Path, rows: int = GROUP, rewards: np.ndarray | None = None, **options: Any) -> None:
        self.scores = np.zeros((rows, 1)) if rewards is None else rewards
        config = Qwen2Config(
            vocab_size=64, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
        )
        arguments = GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            report_to=[],
            per_device_train_batch_size=rows,
            num_generations=GROUP,
            **options,
        )
        super().__init__(
            model=Qwen2ForCausalLM(config),
            args=arguments,
            reward_funcs=[partial(self._score, k) for k in range(self.scores.shape[1])],
            train_dataset=Dataset.from_dict({"prompt": ["a red sign"]}),
            processing_class=TOKENIZER,
            rollout_func=lambda prompts, trainer: self.rolled_out,
        )
        self.current_gradient_accumulation_steps = 1
        self.model.train()

    def _send_telemetry(self) -> None:
        """Tests call nobody."""

    def _score(self, column: int, **_: Any) -> list[float | None]:
        return [None if np.isnan(score) else float(score) for score in self.scores[:, column]]

    def _get_per_token_logps_and_entropies(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None, None]:
        return self.given

    def loss(self, case: Case, **more: Any) -> Tensor:
        """TRL's loss of the case; `more` replaces or adds inputs."""
        self.given = (case.logprobs, case.entropy, None)
        ids = torch.zeros_like(case.mask, dtype=torch.long)
        inputs = {
            "prompt_ids": ids[:, :1],
            "prompt_mask": torch.ones_like(ids[:, :1]),
            "completion_ids": ids,
            "completion_mask": case.mask.long(),
            "advantages": case.advantages,
            "old_per_token_logps": case.old,
            "num_items_in_batch": case.mask.sum(),
        }
        return self._compute_loss(self.model, inputs | more)

    def rollout(self, case: Case) -> dict[str, Tensor]:
        """What TRL makes of a batch rolled out under `case.sampler` and scored: advantages, importance weights and the like."""
        lengths = case.mask.sum(1).tolist()
        self.given = (case.old, None, None)
        self.rolled_out = {
            "prompt_ids": [[1]] * len(lengths),
            "completion_ids": [[2] * length for length in lengths],
            "logprobs": [row[:length] for row, length in zip(case.sampler.tolist(), lengths, strict=True)],
        }
        with torch.no_grad():
            return self._generate_and_score_completions([{"prompt": "a red sign"} for _ in lengths])


TOKENIZER = Stack.tiny_random(0).text_tokenizer


def with_gradient(function: Callable[[Case], Tensor], case: Case) -> tuple[Tensor, Tensor]:
    """The loss of a case and its gradient [N, T] with respect to the log-probabilities."""
    logprobs = case.logprobs.clone().requires_grad_()
    loss = function(replace(case, logprobs=logprobs))
    return loss.detach(), torch.autograd.grad(loss, logprobs)[0]


def assert_same(ours: Callable[[Case], Tensor], theirs: Callable[[Case], Tensor], case: Case) -> None:
    for mine, other in zip(with_gradient(ours, case), with_gradient(theirs, case), strict=True):
        torch.testing.assert_close(mine, other.double(), rtol=1e-6, atol=1e-9)


def our_loss(case: Case, *, reference: bool = False, **knobs: Any) -> Tensor:
    return policy_loss(case.logprobs, case.old, case.advantages, case.mask, case.reference if reference else None, **knobs)[0]


# losses: TRL's options, and what gives the same loss here

AGGREGATIONS = {"grpo": "sequence_mean", "bnpo": "token_mean", "dapo": "token_mean", "dr_grpo": "constant_length"}
CLIPPED: dict[str, tuple[dict[str, Any], Any]] = {
    "one bound": ({"epsilon": 0.2}, partial(clipped, clip_low=0.2, clip_high=0.2)),
    "two bounds": ({"epsilon": 0.1, "epsilon_high": 0.4}, partial(clipped, clip_low=0.1, clip_high=0.4)),
    "dual clip": ({"epsilon": 0.2, "delta": 1.4}, partial(clipped, clip_low=0.2, clip_high=0.2, dual_clip=1.4)),
    "gspo": (
        {"epsilon": 0.05, "epsilon_high": 0.1, "importance_sampling_level": "sequence"},
        partial(gspo, clip_low=0.05, clip_high=0.1),
    ),
}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # epsilon_high of TRL's CISPO is the largest weight itself
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.5}, {"surrogate": partial(cispo, clip_high=0.5)}),
    "sapo": (
        {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 2.0},
        {"surrogate": partial(sapo, temperature_positive=1.0, temperature_negative=2.0), "aggregation": "sequence_mean"},
    ),
    # TRL has no GSPO-token; with one advantage for a whole rollout it is GSPO, loss and gradient
    "gspo_token": (
        {"loss_type": "grpo", "epsilon": 0.05, "importance_sampling_level": "sequence"},
        {"surrogate": partial(gspo_token, clip_low=0.05, clip_high=0.05), "aggregation": "sequence_mean"},
    ),
}


@pytest.mark.parametrize("bounds", CLIPPED)
@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_clipped_loss_of_each_aggregation_equals_trl(loss_type: str, bounds: str, tmp_path: Path) -> None:
    options, surrogate = CLIPPED[bounds]
    oracle = Oracle(tmp_path, loss_type=loss_type, **options)
    ours = partial(our_loss, surrogate=surrogate, aggregation=AGGREGATIONS[loss_type])
    for seed in range(CASES):
        case = draw(seed)
        oracle.max_completion_length = case.mask.shape[1]  # the constant that dr_grpo divides by
        assert_same(ours, oracle.loss, case)


@pytest.mark.parametrize("name", OTHERS)
def test_loss_that_is_not_clipped_by_token_equals_trl(name: str, tmp_path: Path) -> None:
    options, knobs = OTHERS[name]
    oracle = Oracle(tmp_path, **options)
    for seed in range(CASES):
        assert_same(partial(our_loss, **knobs), oracle.loss, draw(seed))


def test_entropy_bonus_equals_trl(tmp_path: Path) -> None:
    oracle = Oracle(tmp_path, loss_type="dapo", entropy_coef=0.1)
    for seed in range(CASES):
        case = draw(seed)
        assert_same(partial(our_loss, surrogate=clipped, entropy=case.entropy, entropy_coef=0.1), oracle.loss, case)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_kl_in_the_loss_equals_trl(loss_type: str, tmp_path: Path) -> None:
    # TRL weighs the KL by the ratio unless told not to (arXiv:2512.02556); GRPO's paper and we do not.
    oracle = Oracle(tmp_path, loss_type=loss_type, use_bias_correction_kl=False)
    oracle.beta = 0.3  # given to the configuration, TRL would load a reference model from disk
    ours = partial(
        our_loss, reference=True, surrogate=clipped, kl_coef=0.3, kl_estimator="k3", aggregation=AGGREGATIONS[loss_type]
    )
    for seed in range(CASES):
        case = draw(seed)
        assert_same(ours, partial(oracle.loss, ref_per_token_logps=case.reference), case)


@pytest.mark.parametrize("correction", ["truncated", "masked", "sequence_truncated", "sequence_masked"])
def test_correction_between_sampler_and_trainer_equals_trl(correction: str, tmp_path: Path) -> None:
    level, kind = ("sequence", correction[9:]) if correction.startswith("sequence_") else ("token", correction)
    mode = f"{level}_{'truncate' if kind == 'truncated' else 'mask'}"
    oracle = Oracle(tmp_path, loss_type="bnpo", vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=1.5)
    oracle.use_vllm = True  # TRL corrects what vLLM sampled; the weights need no vLLM
    oracle._last_loaded_step = oracle.state.global_step
    touched = 0.0
    for seed in range(CASES):
        case = draw(seed)
        oracle.scores = np.zeros((len(case.mask), 1))
        weights = oracle.rollout(case)["importance_sampling_ratio"]
        ours = partial(our_loss, surrogate=clipped, sampler_logprobs=case.sampler, correction=correction, correction_cap=1.5)
        assert_same(ours, partial(oracle.loss, importance_sampling_ratio=weights), case)
        touched += float((weights >= 1.5).sum() + (weights == 0).sum())
    assert touched  # the cap was reached


# advantages

WEIGHTS = np.array([0.5, 0.3, -0.2], dtype=np.float32)  # their sizes add up to 1: TRL adds where we average


def rewards_of(seed: int, components: int, missing: bool = True) -> np.ndarray:
    """float32 [8, K], two groups of four; some have a group of equal rewards, some lack scores, some have a group of one."""
    source = np.random.default_rng(seed)
    rewards = source.random((2 * GROUP, components)).astype(np.float32)
    if seed % 4 == 0:
        rewards[:GROUP] = 0.25
    if missing and seed % 3 == 0:
        rewards[source.integers(0, 2 * GROUP, 2), source.integers(0, components, 2)] = np.nan
    if missing and seed % 5 == 0:
        rewards[GROUP + 1 :] = np.nan
    return rewards


@pytest.fixture
def groups() -> np.ndarray:
    return np.repeat(np.arange(2), GROUP)


SCALES = [("std", "group"), ("batch", "batch"), ("none", "none")]


@pytest.mark.parametrize(("scale", "trl_scale"), SCALES)
def test_group_advantages_equal_trl(scale: Any, trl_scale: str, groups: np.ndarray, tmp_path: Path) -> None:
    oracle = Oracle(tmp_path, rows=2 * GROUP, scale_rewards=trl_scale)
    for seed in range(CASES):
        oracle.scores = rewards_of(seed, 1)
        assert_same_advantages(group_advantages(oracle.scores, np.ones(1), groups, scale=scale), oracle)


def test_advantages_of_several_rewards_equal_trl_where_all_apply(groups: np.ndarray, tmp_path: Path) -> None:
    # Where one does not apply, TRL's sum lacks it, and ours is an average of the others.
    oracle = Oracle(tmp_path, rows=2 * GROUP, rewards=rewards_of(0, 3), reward_weights=WEIGHTS.tolist())
    for seed in range(CASES):
        oracle.scores = rewards_of(seed, 3, missing=False)
        assert_same_advantages(group_advantages(oracle.scores, WEIGHTS, groups), oracle)


def test_gdpo_advantages_equal_trl(groups: np.ndarray, tmp_path: Path) -> None:
    options = {"reward_weights": WEIGHTS.tolist(), "multi_objective_aggregation": "normalize_then_sum"}
    oracle = Oracle(tmp_path, rows=2 * GROUP, rewards=rewards_of(0, 3), **options)
    for seed in range(CASES):
        oracle.scores = rewards_of(seed, 3)
        assert_same_advantages(gdpo_advantages(oracle.scores, WEIGHTS, groups), oracle)


def assert_same_advantages(ours: np.ndarray, oracle: Oracle) -> None:
    """A rollout without a reward has no advantage here; TRL gives it 0, and keeps it in the batch."""
    any_rollout = draw(next(seed for seed in range(CASES) if len(draw(seed).mask) == 2 * GROUP))
    theirs = oracle.rollout(any_rollout)["advantages"].numpy()
    np.testing.assert_allclose(np.nan_to_num(ours), theirs, rtol=1e-6, atol=1e-6)
