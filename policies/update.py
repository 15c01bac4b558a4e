"""From scored rollouts to new weights: advantages, mini-batches of whole groups, gradients, one optimizer step each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.advantages import rewards_with_kl
from xomni_rl.policies.algorithms.base import Algorithm
from xomni_rl.policies.critic import Critic
from xomni_rl.policies.distributed import Team
from xomni_rl.policies.divided import DIVIDING, DividedWeights
from xomni_rl.policies.losses import sequence_kl
from xomni_rl.policies.master_weights import is_low
from xomni_rl.policies.optimizers import make_optimizer
from xomni_rl.policies.policy import ImagePolicy, TokenBatch
from xomni_rl.policies.settings import SettingsError, TrainerSettings
from xomni_rl.stack.sampler import PADDING

FIRST_UPDATE_ONLY = ("ratio_max_deviation",)
"""Metrics of a loss that say something about sampler and trainer at the same weights, so about the first update alone."""


class NonFiniteError(RuntimeError):
    """Loss or gradient is not a finite number; says which, where, and carries the groups it happened in."""

    def __init__(self, message: str, groups: Sequence[int]) -> None:
        super().__init__(message)
        self.groups = [int(group) for group in groups]


@dataclass(frozen=True)
class Experience:
    """What one rollout teaches.

    Attributes:
        tokens: the sampled tokens and their prefixes, N = P · G rows.
        old_logprobs: [N, T] float32 nats, of the policy before the update: the sampler's, unless the algorithm tells the two
            apart.
        advantages: [N] or [N, T] float32; NaN where `keep` is False and there is none.
        keep: [N] bool; True = takes part in the update.
        reference: [N, T] float32 nats under the reference, if the algorithm wants it.
        teaches: whether an update would change anything on purpose: some kept advantage is not 0, there is a critic, or a KL or
            entropy is in the loss.
        extras: [N, …] tensors that the algorithm's loss wants besides, by keyword.
        features: [n, T, D] float32, of the rollouts of this process's share of the groups, and returns: [N, T] float32: what a
            critic learns from; None without one.
    """

    tokens: TokenBatch
    old_logprobs: Tensor
    advantages: Tensor
    keep: Tensor
    reference: Tensor | None
    teaches: bool
    extras: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    returns: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """[N, T] bool; True = a token, and no padding of an image that is smaller than others."""
        return self.tokens.tokens != PADDING

    @property
    def groups(self) -> np.ndarray:
        """Indices of the groups with a kept rollout."""
        by_group = self.keep.view(-1, self.tokens.group_size).any(dim=1)
        return np.flatnonzero(by_group.cpu().numpy())


class Learner:
    """Optimizer, schedule and algorithm around a policy.

    Args:
        policy: its `module` is prepared by the accelerator in place.
        algorithm: advantage, loss, filter, reference.
        settings: learning rate, mini-batches and the like.
        accelerator: device, mixed precision, clipping.
        team: the processes that train together; None = this one alone.
    Raises: SettingsError if the algorithm's reference cannot move as it wants.
    """

    def __init__(
        self,
        policy: ImagePolicy,
        algorithm: Algorithm,
        settings: TrainerSettings,
        accelerator: Accelerator,
        team: Team | None = None,
    ) -> None:
        self.team = team or Team()
        if algorithm.reference is not None:
            policy.keep_reference(follows=algorithm.reference.kind == "ema")
            if algorithm.reference.kind != "frozen" and not policy.reference_tensors():
                raise SettingsError(
                    f"algorithm.options.reference={algorithm.reference.kind} needs a reference that can move, but with "
                    "model.lora it is the base weights: set it to frozen"
                )
        self.policy, self.algorithm, self.settings, self.accelerator = policy, algorithm, settings, accelerator
        self.critic = None
        if "values" in algorithm.needs:
            critic = Critic(policy.feature_size, settings.critic.learning_rate, settings.critic.epochs, settings.seed)
            self.critic = critic.to(accelerator.device)
        self.halvings = 0
        module, self.divided = policy.module, None
        if accelerator.distributed_type in DIVIDING:
            self.divided = DividedWeights(module, policy.model, leads=self.team.leads)
            module = self.divided.copy
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(parameters, settings, divided=self.divided is not None)
        self.scheduler = LambdaLR(self.optimizer, self._learning_rate_share)
        policy.module, self._stepper = accelerator.prepare(module, self.optimizer)
        if self.divided is not None:
            self.divided.take_over(accelerator, policy.module, self.optimizer)
            self.divided.check_precision()
        self._parameters = [parameter for parameter in policy.module.parameters() if parameter.requires_grad]

    def experience(self, batch: RolloutBatch) -> Experience:
        """Advantages and choice of a batch's rollouts, and whatever else the algorithm wants of them."""
        algorithm, rewards, weights = self.algorithm, batch.rewards.normalised, batch.rewards.weights
        keep = algorithm.filter(rewards, weights, batch.group) & ~batch.rewards.failed
        tokens = TokenBatch.of(batch)
        reference = None if algorithm.reference is None else self._by_chunks(self.policy.reference_logprobs, tokens)
        if reference is not None and algorithm.kl_in_reward:
            kl = sequence_kl(batch.old_logprobs, reference, batch.loss_mask, algorithm.kl_estimator)
            rewards = rewards_with_kl(rewards, weights, kl.cpu().numpy(), algorithm.kl_in_reward)
        device = batch.tokens.device
        known: dict[str, np.ndarray] = {}
        if "greedy" in algorithm.needs and batch.greedy is not None:
            known["greedy"] = batch.greedy
        features = returns = None
        if self.critic is not None and algorithm.returns is not None:
            features = self._own_chunks(self.policy.features, tokens)
            known["values"] = self.team.rows(self.critic.values(features), device).cpu().numpy()
            if not batch.loss_mask.all():
                known["mask"] = batch.loss_mask.cpu().numpy()
            returns = torch.from_numpy(algorithm.returns(rewards, weights, batch.group, **known)).to(device)
        advantages = algorithm.advantage(rewards, weights, batch.group, **known)
        keep &= np.isfinite(advantages.reshape(len(advantages), -1)).all(axis=1)
        old, extras = self._loss_extras(batch, tokens)
        always = (
            self.critic is not None or "entropy" in algorithm.needs or (reference is not None and not algorithm.kl_in_reward)
        )
        return Experience(
            tokens=tokens,
            old_logprobs=old,
            advantages=torch.from_numpy(advantages).to(device),
            keep=torch.from_numpy(keep).to(device),
            reference=reference,
            teaches=bool(keep.any() and (always or (advantages[keep] != 0).any())),
            extras=extras,
            features=features,
            returns=returns,
        )

    def _loss_extras(self, batch: RolloutBatch, tokens: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Old log-probabilities, and what else the loss is to be given of every rollout."""
        old, extras = batch.old_logprobs, {}
        if "sampler_logprobs" in self.algorithm.needs:
            with torch.no_grad():
                old, extras["sampler_logprobs"] = self._by_chunks(lambda part: self.policy.logprobs(part)[0], tokens), old
        if "group" in self.algorithm.needs:
            extras["group"] = torch.from_numpy(batch.group).to(old.device)
        return old, extras

    def update(self, experience: Experience, rng: np.random.Generator) -> dict[str, float]:
        """All optimizer steps on one rollout: `epochs` passes of `minibatches` steps over groups in random order.

        Returns: the loss's metrics, averaged over kept rollouts and steps; "loss", "grad_norm" (before clipping) and
            "learning_rate" (of the last step); "logprob_max_delta" (nats, largest difference between the sampler's and
            the trainer's log-probabilities at the same weights) and "ratio_max_deviation", both of the first step alone.
        Raises: NonFiniteError; that optimizer step is not taken.
        """
        steps: list[tuple[int, dict[str, float]]] = []
        for _ in range(self.settings.epochs):
            for minibatch in split(rng.permutation(experience.groups), self.settings.minibatches):
                steps.append(self._step(experience, minibatch, first=not steps))
        averages = weighted_means(steps)
        if self.divided is not None:
            self.divided.pull()
        if self.critic is not None and experience.features is not None and experience.returns is not None:
            own = self._rows(experience, self._own_groups(experience.tokens))
            mask = None if bool(experience.mask.all()) else experience.mask[own]
            averages |= self.critic.fit(experience.features, experience.returns[own], experience.keep[own], self.team, mask)
        return averages | {"learning_rate": steps[-1][1]["learning_rate"]}

    @property
    def low_precision(self) -> bool:
        """Whether weights or arithmetic have 16 bits."""
        return self.accelerator.mixed_precision != "no" or any(map(is_low, self.policy.model.parameters()))

    @property
    def saved_optimizer(self) -> Optimizer | DividedWeights:
        """The optimizer as checkpoints know it."""
        return self.optimizer if self.divided is None else self.divided

    def follow(self, step: int) -> None:
        """Moves a reference that follows the policy, after training step `step`."""
        reference = self.algorithm.reference
        if reference is None or reference.kind == "frozen":
            return
        if reference.kind == "ema":
            self.policy.move_reference(reference.decay)
        elif step % reference.every == 0:
            self.policy.move_reference(0.0)

    def halve_learning_rate(self, times: int) -> None:
        """From now on the rate is the settings' (a checkpoint's may be another), as scheduled and halved that often."""
        self.halvings = times
        self.scheduler.base_lrs = [self.settings.learning_rate for _ in self.optimizer.param_groups]
        rate = self.settings.learning_rate * self._learning_rate_share(self.scheduler.last_epoch)
        for group in self.optimizer.param_groups:
            group.update(lr=rate, weight_decay=self.settings.weight_decay)
        self.scheduler._last_lr = [rate for _ in self.optimizer.param_groups]

    def extra_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold beside weights and optimizer: a reference that moves, a critic."""
        moves = self.algorithm.reference is not None and self.algorithm.reference.kind != "frozen"
        tensors = self.policy.reference_tensors() if moves else {}
        named = {f"reference/{name}": value for name, value in tensors.items()}
        critic = self.critic.state() if self.critic is not None else {}
        return named | {f"critic/{name}": value for name, value in critic.items()}

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restores what `extra_tensors` gave.

        Raises: SettingsError if the run began without a reference that moves; KeyError, ValueError or RuntimeError if something
            else does not fit.
        """
        anchors = {name: value for name, value in self.extra_tensors().items() if name.startswith("reference/")}
        if self.algorithm.reference is not None and not anchors.keys() <= tensors.keys():
            raise SettingsError(
                f"algorithm.options.reference={self.algorithm.reference.kind} has no reference to go on with, as the run "
                "began without it: leave it as it was, or start another run with run=FOLDER"
            )
        with torch.no_grad():
            for name, value in anchors.items():
                value.copy_(tensors[name])
        if self.critic is not None:
            start = "critic/"
            self.critic.load_state({n.removeprefix(start): value for n, value in tensors.items() if n.startswith(start)})

    def _learning_rate_share(self, done: int) -> float:
        settings = self.settings
        return learning_rate_share(done, settings.warmup_steps, settings.decay_steps) * 0.5**self.halvings

    def _step(self, experience: Experience, minibatch: np.ndarray, first: bool) -> tuple[int, dict[str, float]]:
        """One optimizer step, in `accumulation` micro-batches of whole groups, each shared by the processes.

        Returns: kept rollouts, metrics.
        """
        try:
            return self._guarded_step(experience, minibatch, first)
        finally:
            self.optimizer.zero_grad(set_to_none=True)  # now, so that sampling has their memory

    def _guarded_step(self, experience: Experience, minibatch: np.ndarray, first: bool) -> tuple[int, dict[str, float]]:
        """`_step`, after which gradients are still there. Raises: NonFiniteError before anything is changed."""
        learning_rate = float(self.scheduler.get_last_lr()[0])
        chunks = list(split(minibatch, self.settings.accumulation))
        rows = self._rows(experience, minibatch)
        kept, whole = int(experience.keep[rows].sum()), self._weight(experience, rows[experience.keep[rows]])
        mine: list[tuple[int, dict[str, float], list[int]]] = []
        for index, chunk in enumerate(chunks):
            last = index == len(chunks) - 1
            self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed takes its step in the last backward pass
            with nullcontext() if last else self.accelerator.no_sync(self.policy.module):
                mine.append((*self._backward(experience, chunk, whole), chunk.tolist()))
        parts: list[tuple[int, dict[str, float]]] = []
        for count, found, groups in (part for theirs in self.team.gathered(mine) for part in theirs if part[0]):
            if not math.isfinite(found["loss"]):
                raise NonFiniteError(f"the loss is {found['loss']}", groups)
            parts.append((count, found))
        grad_norm = self._clipped_norm(minibatch)
        self._stepper.step()
        self.scheduler.step()
        return kept, step_metrics(parts, first) | {"grad_norm": grad_norm, "learning_rate": learning_rate}

    def _backward(self, experience: Experience, chunk: np.ndarray, total: int) -> tuple[int, dict[str, float]]:
        """Adds the gradient of this process's share of some groups, weighted by its part of the step's `total` weight.

        Returns: weight of the share's kept rollouts, 0 if there are none; metrics.
        """
        share = self.team.share(chunk.tolist())
        groups = self._filled(share, chunk)
        rows = self._rows(experience, groups)
        rows_kept = experience.keep[rows]
        rows_kept[len(share) * experience.tokens.group_size :] = False
        chosen = rows[rows_kept]
        with_entropy = "entropy" in self.algorithm.needs
        logprobs, entropy = self.policy.logprobs(experience.tokens.groups(groups.tolist()), with_entropy=with_entropy)
        logprobs = logprobs[rows_kept]
        if not len(chosen):
            self.accelerator.backward(logprobs.sum())  # of nothing
            return 0, {}
        extras = {name: values[chosen] for name, values in experience.extras.items()}
        if entropy is not None:
            extras["entropy"] = entropy[rows_kept]
        old = experience.old_logprobs[chosen]
        reference = None if experience.reference is None else experience.reference[chosen]
        mask = experience.mask[chosen]
        loss, metrics = self.algorithm.loss(logprobs, old, experience.advantages[chosen], mask, reference, **extras)
        weight = self._weight(experience, chosen)
        self.accelerator.backward(loss * (weight / total * self.team.size))  # gradients are averaged over the processes
        values = {name: float(value) for name, value in metrics.items()}
        delta = float((logprobs.detach() - old)[mask].abs().max())
        return weight, values | {"loss": float(loss.detach()), "logprob_max_delta": delta}

    def _weight(self, experience: Experience, rows: Tensor) -> int:
        """What kept rollouts count for in the step's loss: as many as they are, or as they have tokens where images differ."""
        mask = experience.mask
        by_tokens = self.algorithm.loss_weighs == "tokens" and not bool(mask.all())
        return int(mask[rows].sum()) if by_tokens else len(rows)

    def _clipped_norm(self, groups: np.ndarray) -> float:
        limit = self.settings.max_grad_norm
        norm = float(self.accelerator.clip_grad_norm_(self._parameters, math.inf if limit is None else limit))
        if not math.isfinite(norm) and self.accelerator.scaler is None:  # a loss scaler expects it, and skips the step
            raise NonFiniteError(f"the gradient's norm is {norm}", groups.tolist())
        return norm

    def _by_chunks(self, function: Callable[[TokenBatch], Tensor], tokens: TokenBatch) -> Tensor:
        """A function of tokens, each process computing its share. Returns: [N, …]."""
        return self.team.rows(self._own_chunks(function, tokens), tokens.tokens.device)

    def _own_chunks(self, function: Callable[[TokenBatch], Tensor], tokens: TokenBatch) -> Tensor:
        """A function of this process's share of the tokens, as many groups at a time as a backward pass takes."""
        own = self._own_groups(tokens)
        filled = self._filled(own.tolist(), np.arange(len(tokens.input_ids)))
        chunks = split(filled, self.settings.minibatches * self.settings.accumulation)
        values = torch.cat([function(tokens.groups(chunk.tolist())) for chunk in chunks])
        return values[: len(own) * tokens.group_size]

    def _filled(self, share: list[int], groups: np.ndarray) -> np.ndarray:
        """A share of groups with one of them repeated to the length of the largest share: processes wait for each other in
        every pass, so each goes through as many groups as the others."""
        most = math.ceil(len(groups) / self.team.size)
        return np.array(share + [int(groups[0])] * (most - len(share)), dtype=np.int64)

    def _own_groups(self, tokens: TokenBatch) -> np.ndarray:
        """Indices of the groups that are this process's share."""
        return np.array(self.team.share(range(len(tokens.input_ids))), dtype=np.int64)

    def _rows(self, experience: Experience, groups: np.ndarray) -> Tensor:
        """Rows [len(groups) · G] of groups, in order."""
        size = experience.tokens.group_size
        rows = (groups[:, None] * size + np.arange(size)).reshape(-1)
        return torch.from_numpy(rows).to(experience.keep.device)


def learning_rate_share(done: int, warmup_steps: int, decay_steps: int | None) -> float:
    """Share of the learning rate after `done` optimizer steps: linear warm-up times a linear fall to a tenth."""
    warm = min(1.0, (done + 1) / warmup_steps) if warmup_steps else 1.0
    return warm if decay_steps is None else warm * (1 - 0.9 * min(1.0, done / decay_steps))


def split(items: np.ndarray, parts: int) -> Iterator[np.ndarray]:
    """At most `parts` pieces of nearly equal size, none of them empty."""
    yield from (piece for piece in np.array_split(items, parts) if len(piece))


def step_metrics(parts: Sequence[tuple[int, dict[str, float]]], first: bool) -> dict[str, float]:
    """Metrics of an optimizer step from those of its micro-batches: means, and the extremes of a first step."""
    metrics = weighted_means(parts)
    extremes = (*FIRST_UPDATE_ONLY, "logprob_max_delta")
    worst = {name: max(part[name] for _, part in parts) for name in extremes if name in metrics} if first else {}
    return {name: value for name, value in metrics.items() if name not in extremes} | worst


def weighted_means(parts: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Mean of each metric over the parts that have it, weighted by their first entries."""
    names = list(dict.fromkeys(name for _, metrics in parts for name in metrics))
    means = {}
    for name in names:
        having = [(weight, metrics[name]) for weight, metrics in parts if name in metrics]
        means[name] = sum(weight * value for weight, value in having) / sum(weight for weight, _ in having)
    return means
