"""TRL as engine: `GRPOTrainer` makes advantages of rewards, computes the loss and takes the optimizer steps; the rest is ours.

Ours, through TRL's hooks: rollouts and rewards (`rollout_func`, whose extra field the reward functions read), prompts and
mini-batches of whole groups by (seed, step) (`_prepare_inputs`), log-probabilities over the image vocabulary alone
(`_get_per_token_logps_and_entropies`), AdamW and its schedule (`optimizers`), and whatever a run writes (a `TrainerCallback`).
An algorithm is translated part by part; a part that TRL has not is refused, never replaced.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.advantages import combine_rewards, gdpo_advantages, group_advantages
from xomni_rl.policies.algorithms.base import Algorithm
from xomni_rl.policies.evaluation import own_random_state
from xomni_rl.policies.losses import policy_loss
from xomni_rl.policies.losses.surrogates import cispo, clipped, gspo, sapo
from xomni_rl.policies.settings import SettingsError, TrainerSettings
from xomni_rl.policies.trainer import Trainer
from xomni_rl.policies.update import Experience, NonFiniteError, split, step_metrics, weighted_means
from xomni_rl.stack.stack import Stack

try:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise SettingsError(f"trainer.engine=trl needs TRL ({error}): pip install 'xomni-rl[trl]'") from error

LOSS_TYPES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant_length": "dr_grpo"}


class TRLTrainer(Trainer):
    """A run whose weights TRL trains. Arguments as `xomni_rl.policies.trainer.train` has them.

    Raises: SettingsError for an algorithm or a setting that TRL has no counterpart of.
    """

    def __init__(self, *parts: Any) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise _refused("several processes")
        super().__init__(*parts)
        trained = getattr(self.policy, "stack", self.policy)
        if not isinstance(trained, Stack):
            raise _refused(f"a {type(trained).__name__}")
        self.options = batch_options(self.settings) | algorithm_options(self.algorithm)

    def _train(self) -> None:
        while self._why_stop() is None:  # more than once only after going back to a checkpoint
            with own_random_state(self.settings.seed):  # TRL seeds the global generators
                engine = Engine(self)
            try:
                with suppress(_NothingLeft):
                    engine.train()
            except NonFiniteError as error:
                number = engine.step.number
                told = self._explained(number, engine.step.batch, engine.step.experience, error)
                if self.settings.alarms.nonfinite_action != "rollback" or not self._roll_back(number, str(told)):
                    raise told from error
            finally:
                self.policy.model.__dict__.pop("forward", None)  # TRL's head and accelerate's autocast

    def end_step(
        self, number: int, batch: RolloutBatch, experience: Experience, metrics: dict[str, float], began: float
    ) -> bool:
        """What follows an update, or none. Returns: whether training is to end."""
        self.learner.follow(number)
        self._record(number, batch, experience, metrics, batch.times | {"update": self._elapsed(began)})
        return self._why_stop() is not None


@dataclass
class Step:
    """A training step on its way: what was rolled out, micro-batches to come, what was measured so far.

    `parts` has kept rollouts and metrics of each micro-batch of the optimizer step under way, `done` of each optimizer step;
    `began` is when the update began, of `time.perf_counter`; the rest is as in `Trainer`.
    """

    number: int
    batch: RolloutBatch
    experience: Experience
    metrics: dict[str, float]
    began: float
    queue: deque[dict[str, Any]] = field(default_factory=deque)
    parts: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    done: list[tuple[int, dict[str, float]]] = field(default_factory=list)


class Engine(GRPOTrainer):
    """TRL's trainer around a run of ours."""

    def __init__(self, run: TRLTrainer) -> None:
        logging.getLogger("trl.trainer.grpo_trainer").setLevel(logging.ERROR)  # it warns of every rollout without a reward
        for meant in ("You are using 'rollout_func'", "`is_gradient_checkpointing` is deprecated"):
            warnings.filterwarnings("ignore", message=meant)
        self.run = run
        self.step: Step
        settings, learner = run.settings, run.learner
        options = {name: value for name, value in run.options.items() if name != "beta"}
        self.by_component = "multi_objective_aggregation" in options
        arguments = GRPOConfig(
            output_dir=str(run.folder.path),  # TRL writes nothing there
            use_cpu=run.accelerator.device.type == "cpu",
            bf16=settings.mixed_precision == "bf16",
            accelerator_config={"use_configured_state": True},
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            activation_checkpointing=False,  # `model.gradient_checkpointing` works in the policy
            seed=settings.seed % 2**32,
            max_steps=(settings.steps - run.progress.step) * settings.epochs * settings.minibatches,
            max_grad_norm=math.inf if settings.max_grad_norm is None else settings.max_grad_norm,
            mask_truncated_completions=False,  # an image has no end token
            use_bias_correction_kl=False,  # the KL of arXiv:2402.03300, eq. 4, without an importance weight
            **options,
        )
        model: Any = run.policy.model
        pads = [(config, config.pad_token_id) for config in (model.config.get_text_config(), model.generation_config)]
        super().__init__(
            model=model,
            args=arguments,
            reward_funcs=[_reward(k) for k in range(len(run.reward.names) if self.by_component else 1)],
            train_dataset=Dataset.from_dict({"prompt": [prompt.text for prompt in run.train_prompts]}),
            processing_class=run.policy.stack.text_tokenizer,  # type: ignore[attr-defined]  # checked to be X-Omni's
            callbacks=[_StepEnd(self)],
            optimizers=(learner.optimizer, learner.scheduler),
            rollout_func=lambda prompts, trainer: trainer.rolled_out,
        )
        for config, pad in pads:
            config.pad_token_id = pad  # TRL changes it to the tokenizer's, and `train` would change others
        self.processing_class = self  # image tokens have no text: see `batch_decode`
        self.inputs: dict[str, Any] = {}
        self.beta = run.options["beta"]  # given in the arguments, TRL would load a reference by the model's name
        self.ref_model = nn.Identity() if self.beta else None  # never called: the learner has its log-probabilities

    # what TRL trains on

    def get_train_dataloader(self) -> list[dict[str, Any]]:
        """As many empty batches as there are micro-batches: `_prepare_inputs` fills them."""
        return [{}] * (self.args.max_steps * self.args.gradient_accumulation_steps)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if not hasattr(self, "step") or not self.step.queue:
            self._roll_out()
        return self.step.queue.popleft()

    def _roll_out(self) -> None:
        """Steps until one teaches something, which becomes `step`. Raises: _NothingLeft if training ends before."""
        run = self.run
        while run._why_stop() is None:
            number = run.progress.step + 1
            batch, metrics = run._rolled_out(number)
            began = time.perf_counter()
            experience = run.learner.experience(batch)
            if experience.teaches:
                self.step = Step(number, batch, experience, metrics, began)
                return self._score()
            metrics |= run._update(number, batch, experience)  # counts the step as skipped
            run.end_step(number, batch, experience, metrics, began)
        raise _NothingLeft

    def _score(self) -> None:
        """TRL's advantages for the step, and its micro-batches."""
        step = self.step
        batch, own = step.batch, step.experience.advantages
        self.model.train()  # TRL tells training from evaluation by it; the policy scores in evaluation mode whatever this is
        self.max_completion_length = batch.tokens.shape[1]
        self.rolled_out = self._as_rolled_out(batch)
        output = self._generate_and_score_completions([{"prompt": prompt.text} for prompt in batch.prompts])
        theirs = output["advantages"].to(own.device)
        step.experience = replace(step.experience, advantages=torch.where(own.isnan(), own, theirs))
        step.queue.extend(self._micro_batches(output))

    def _as_rolled_out(self, batch: RolloutBatch) -> dict[str, list[Any]]:
        """What TRL's rollout hook is to return, and beside it `rewards`: one list of numbers per rollout."""
        rewards = batch.rewards
        scores = rewards.normalised.copy()
        if self.by_component:
            scores[:, rewards.weights == 0] = np.nan  # logged only: what TRL leaves out of its sum
            self.reward_weights = torch.from_numpy(rewards.weights)
        else:
            scores = combine_rewards(scores, rewards.weights)[:, None]
        scores[rewards.failed] = np.nan
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        tokens, there = batch.tokens + self.model.config.get_text_config().vocab_size, batch.loss_mask
        return {
            "prompt_ids": [ids for ids in prompts for _ in range(batch.group_size)],
            "completion_ids": [row[mask].tolist() for row, mask in zip(tokens, there, strict=True)],
            "logprobs": [row[mask].tolist() for row, mask in zip(batch.old_logprobs, there, strict=True)],
            "rewards": scores.tolist(),
        }

    def _micro_batches(self, output: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
        """Inputs of TRL's loss: epochs × mini-batches × accumulation, cut as the native engine cuts them."""
        settings, experience = self.run.settings, self.step.experience
        rng = np.random.default_rng([settings.seed, self.step.number])
        for _ in range(settings.epochs):
            for minibatch in split(rng.permutation(experience.groups), settings.minibatches):
                rows = self.run.learner._rows(experience, minibatch)
                kept = int(experience.mask[rows[experience.keep[rows]]].sum())
                pieces = list(split(minibatch, settings.accumulation))
                for groups in pieces:
                    yield self._micro_batch(output, groups, kept)
                for _ in range(settings.accumulation - len(pieces)):  # TRL counts on as many; these count for nothing
                    blank = self._micro_batch(output, minibatch[:1], kept)
                    yield blank | {"completion_mask": torch.zeros_like(blank["completion_mask"])}

    def _micro_batch(self, output: Mapping[str, Tensor], groups: np.ndarray, total: int) -> dict[str, Any]:
        """Inputs for the kept rollouts of some groups; `total` = kept rollouts' tokens in their optimizer step."""
        experience, settings = self.step.experience, self.run.settings
        rows = self.run.learner._rows(experience, groups)
        chosen = experience.keep[rows]
        kept = rows[chosen]
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        # What TRL's mean over tokens divides by, it takes to be of the whole rollout, and divides by the mini-batches first.
        return {name: output[name][kept] for name in names} | {
            "advantages": experience.advantages[kept],
            "old_per_token_logps": experience.old_logprobs[kept],
            "ref_per_token_logps": None if experience.reference is None else experience.reference[kept],
            "num_items_in_batch": torch.tensor(float(total * settings.minibatches), device=kept.device),
            "groups": groups,
            "chosen": chosen,
        }

    # what TRL asks of the policy

    def batch_decode(self, completion_ids: list[list[int]], **_: Any) -> list[str]:
        return [""] * len(completion_ids)

    def _get_per_token_logps_and_entropies(self, model: nn.Module, *_: Any, **__: Any) -> tuple[Any, Any, None]:
        """Log-probabilities and entropy over the image vocabulary, of the micro-batch under way or of all rollouts."""
        experience, inputs = self.step.experience, self.inputs
        if model is self.ref_model:
            return experience.reference, None, None
        if not torch.is_grad_enabled():
            return experience.old_logprobs, None, None  # sampled at these very weights
        wanted = "entropy" in self.run.algorithm.needs
        scored = self.run.policy.logprobs(experience.tokens.groups(inputs["groups"].tolist()), with_entropy=wanted)
        self.model.train()
        inputs["logprobs"], entropy = (None if values is None else values[inputs["chosen"]] for values in scored)
        inputs["entropy"] = torch.zeros_like(inputs["logprobs"]) if entropy is None else entropy
        return inputs["logprobs"], inputs["entropy"], None

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self.inputs = inputs
        loss: Tensor = super()._compute_loss(model, inputs)
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()}", inputs["groups"].tolist())
        if inputs["completion_mask"].any():
            self.step.parts.append(self._measured(inputs, float(loss.detach())))
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        norm: Tensor = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            raise NonFiniteError(f"the gradient's norm is {float(norm)}", self.inputs["groups"].tolist())
        self.grad_norm, self.learning_rate = float(norm), float(self.lr_scheduler.get_last_lr()[0])
        return norm

    @torch.no_grad()
    def _measured(self, inputs: dict[str, Any], loss: float) -> tuple[int, dict[str, float]]:
        """Kept rollouts of a micro-batch, and its metrics by the native engine's names; `loss` is TRL's."""
        logprobs, old, mask = inputs["logprobs"], inputs["old_per_token_logps"], inputs["completion_mask"].bool()
        extras = {"entropy": inputs["entropy"]} if "entropy" in self.run.algorithm.needs else {}
        arguments = (logprobs, old, inputs["advantages"], mask, inputs["ref_per_token_logps"])
        values = {name: float(value) for name, value in self.run.algorithm.loss(*arguments, **extras)[1].items()}
        return len(mask), values | {"loss": loss, "logprob_max_delta": float((logprobs - old).abs().max())}

    def optimizer_step_ended(self) -> bool:
        """Closes an optimizer step and, with the last one, the training step. Returns: whether training is to end."""
        step, parts = self.step, self.step.parts
        measured = {"loss": sum(values["loss"] for _, values in parts), "grad_norm": self.grad_norm}
        step.done.append((sum(count for count, _ in parts), step_metrics(parts, first=not step.done) | measured))
        parts.clear()
        self._metrics["train"].clear()  # TRL's own would pile up
        if step.queue:
            return False
        metrics = step.metrics | {"skipped": 0.0} | weighted_means(step.done) | {"learning_rate": self.learning_rate}
        return self.run.end_step(step.number, step.batch, step.experience, metrics, step.began)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The run folder is the record; TRL keeps none beside it."""

    def _send_telemetry(self) -> None:
        """Training calls nobody."""


@dataclass
class _StepEnd(TrainerCallback):
    """Tells the engine of every optimizer step."""

    engine: Engine

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= self.engine.optimizer_step_ended()


class _NothingLeft(Exception):  # noqa: N818 - no error: steps that teach nothing are the last ones
    """Training ends while TRL waits for a batch."""


def batch_options(settings: TrainerSettings) -> dict[str, Any]:
    """GRPOConfig's options for the sizes of a step. Raises: SettingsError for sizes that TRL cannot take."""
    pieces = settings.minibatches * settings.accumulation
    if settings.prompts_per_step % pieces:
        raise _refused(f"{settings.prompts_per_step} prompts in {pieces} equal micro-batches (minibatches · accumulation)")
    if settings.mixed_precision == "fp16":
        raise _refused("trainer.mixed_precision fp16")
    return {
        "num_generations": settings.group_size,
        "per_device_train_batch_size": settings.prompts_per_step // pieces * settings.group_size,
        "gradient_accumulation_steps": settings.accumulation,
        "steps_per_generation": pieces,
        "num_iterations": settings.epochs,
    }


def algorithm_options(algorithm: Algorithm) -> dict[str, Any]:
    """GRPOConfig's options for an algorithm.

    Raises: SettingsError naming the first part that TRL has no counterpart of.
    """
    for need in sorted(algorithm.needs - {"entropy"}):
        raise _refused(f"{algorithm.name}, which needs {need.replace('_', ' ')}")
    if algorithm.kl_in_reward:
        raise _refused("algorithm.options.kl_in=reward")
    return _advantage_options(algorithm) | _loss_options(algorithm)


def _advantage_options(algorithm: Algorithm) -> dict[str, Any]:
    function, knobs = _bound(algorithm.advantage)
    if function not in (group_advantages, gdpo_advantages):
        raise _refused(f"{algorithm.name}'s advantages ({function.__name__})")
    if knobs["eps"] != 1e-4:
        raise _refused("another eps of advantages than 1e-4")
    if function is gdpo_advantages:
        return {"multi_objective_aggregation": "normalize_then_sum"}
    return {"scale_rewards": {"std": "group"}.get(knobs["scale"], knobs["scale"])}


def _loss_options(algorithm: Algorithm) -> dict[str, Any]:
    function, knobs = _bound(algorithm.loss)
    if function is not policy_loss:
        raise _refused(f"{algorithm.name}'s loss ({function.__name__})")
    if knobs["kl_coef"] and knobs["kl_estimator"] != "k3":
        raise _refused(f"algorithm.options.kl_estimator={knobs['kl_estimator']}")
    surrogate, own = _bound(knobs["surrogate"])
    aggregation = knobs["aggregation"]
    options = {"beta": knobs["kl_coef"], "entropy_coef": knobs["entropy_coef"], "loss_type": LOSS_TYPES[aggregation]}
    if surrogate in (clipped, gspo):
        options |= {"epsilon": own["clip_low"], "epsilon_high": own["clip_high"], "delta": own.get("dual_clip")}
        if options["delta"] is not None and options["delta"] < 1.0 + own["clip_high"]:
            raise _refused("a dual_clip below 1 + clip_high")
        return options | {"importance_sampling_level": "sequence" if surrogate is gspo else "token"}
    if surrogate is cispo and own["clip_low"] == 1.0 and aggregation == "token_mean":
        return options | {"loss_type": "cispo", "epsilon_high": 1.0 + own["clip_high"]}
    if surrogate is sapo and aggregation == "sequence_mean":
        temperatures = {f"sapo_temperature_{name[:3]}": own[f"temperature_{name}"] for name in ("positive", "negative")}
        return options | {"loss_type": "sapo"} | temperatures
    raise _refused(f"{algorithm.name}'s loss of a token ({surrogate.__name__} with {own}, aggregation {aggregation})")


def _bound(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function without its bound keywords, and all its keywords with their values, defaults included."""
    knobs: dict[str, Any] = {}
    while isinstance(function, partial):
        knobs, function = function.keywords | knobs, function.func
    parameters = inspect.signature(function).parameters.values()
    return function, {entry.name: entry.default for entry in parameters if entry.default is not entry.empty} | knobs


def _reward(column: int) -> Callable[..., list[float | None]]:
    """A reward function that reads a column of what the rollout brought."""

    def reward(rewards: list[list[float]], **_: Any) -> list[float | None]:
        return [None if math.isnan(row[column]) else row[column] for row in rewards]

    return reward


def _refused(what: str) -> SettingsError:
    return SettingsError(f"trainer.engine=trl cannot train with {what}: take trainer.engine=native")
