"""What a step trains on: its prompts, their scored rollouts, other prompts' for dull groups, greedy images to compare with.

Everything is keyed by (seed, step) and what was seen of the prompts before, so a run that goes on draws the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xomni_rl.envs.groups import chosen_groups, joined
from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.algorithms.base import Algorithm, build_algorithm
from xomni_rl.policies.batches import prompts_of_step, rollout_metrics, stream_seed
from xomni_rl.policies.curriculum import PassRates
from xomni_rl.policies.filters import needs_resampling
from xomni_rl.policies.policy import Sampler
from xomni_rl.policies.settings import SettingsError, TrainerSettings
from xomni_rl.prompts import Prompt


def suitable_algorithm(config: Mapping[str, Any], settings: TrainerSettings, reward: Any) -> Algorithm:
    """The algorithm that a configuration names, once it is known that it can work with these sizes and this reward.

    Raises: UnknownNameError, AlgorithmError; SettingsError if group size or normalisation do not suit it.
    """
    chosen = config.get("algorithm") or {}
    algorithm = build_algorithm(str(chosen.get("name", "grpo")), chosen.get("options"))
    least = max(algorithm.least_group_size, 2 if algorithm.resample_rounds else 1)
    if settings.group_size < least:
        raise SettingsError(
            f"algorithm {algorithm.name} compares at least {least} images of a prompt, but trainer.group_size is "
            f"{settings.group_size}: raise it, or choose an algorithm that compares across the batch (reinforce_pp, batch)"
        )
    if "greedy" in algorithm.needs and reward.normalised_by - {"none"}:
        raise SettingsError(
            f"algorithm {algorithm.name} compares rewards with those of greedy images, which a normalised reward "
            "does not allow: set reward.normalisation=none"
        )
    return algorithm


@dataclass(frozen=True)
class Collector:
    """Rolls out what the algorithm wants for a step.

    Args:
        policy: rolls out.
        reward: composite reward, whose weights may depend on the step.
        prompts: all training prompts, with different ids.
        settings: sizes, sampling, seed, curriculum.
        algorithm: whether greedy images are needed, how often dull groups are replaced.
    """

    policy: Sampler
    reward: Any
    prompts: Sequence[Prompt]
    settings: TrainerSettings
    algorithm: Algorithm

    def collect(self, step: int, seen: PassRates) -> tuple[RolloutBatch, dict[str, float], PassRates]:
        """The scored rollouts of a step, and their figures as first drawn.

        Args:
            step: from 1.
            seen: pass rates of the prompts so far; only a curriculum looks at them, and adds to them.
        Returns: P · G rollouts; their figures, images (all that were drawn) and, with resampling, resampled_share (groups
            replaced, in [0, 1]) and resample_rounds; the pass rates with this step's, those of replaced groups too.
        """
        first = self._roll_out(self._prompts(step, seen), step)
        weights = self.reward.varying_weights(step)
        metrics = rollout_metrics(first) | {f"weight/{name}": weight for name, weight in weights.items()}
        batch, rounds = self._resampled(first, step)
        if self.algorithm.resample_rounds:
            replaced = {prompt.id for prompt in batch.prompts} - {prompt.id for prompt in first.prompts}
            metrics |= {"resampled_share": len(replaced) / len(batch.input_ids), "resample_rounds": float(len(rounds))}
        metrics["images"] = float(sum(len(each.tokens) for each in (first, *rounds)))
        if "greedy" in self.algorithm.needs:
            batch = self._with_greedy(batch, step)
            metrics["images"] += len(batch.input_ids)
        return batch, metrics, self._noted(seen, [first, *rounds])

    def _prompts(self, step: int, seen: PassRates) -> list[Prompt]:
        settings, curriculum = self.settings, self.settings.curriculum
        if curriculum is None:
            return prompts_of_step(self.prompts, settings.prompts_per_step, step, settings.seed)
        band = {"low": curriculum.low, "high": curriculum.high, "floor": curriculum.floor, "prior": curriculum.prior}
        return seen.choose(self.prompts, settings.prompts_per_step, step, settings.seed, **band)

    def _roll_out(self, prompts: Sequence[Prompt], step: int) -> RolloutBatch:
        settings = self.settings
        seed = stream_seed(settings.seed, step)
        return self.policy.rollout(prompts, self.reward.at(step), group_size=settings.group_size, seed=seed)

    def _resampled(self, batch: RolloutBatch, step: int) -> tuple[RolloutBatch, list[RolloutBatch]]:
        """Replaces groups whose rewards are all equal by other prompts', for as many rounds as the algorithm allows.

        Source: arXiv:2503.14476, section 3.2. Departs from it: bounded, and no more groups are drawn than are missing.
        Returns: the batch; what was drawn for it in each round.
        """
        rounds: list[RolloutBatch] = []
        left = self._unused(batch, step)
        while len(rounds) < self.algorithm.resample_rounds:
            dull = np.flatnonzero(_teaches_nothing(batch))
            if not len(dull) or not left:
                break
            fresh = self._roll_out([left.pop() for _ in range(min(len(dull), len(left)))], step)
            rounds.append(fresh)
            useful = np.flatnonzero(~_teaches_nothing(fresh))
            count, order = len(batch.input_ids), np.arange(len(batch.input_ids))
            order[dull[: len(useful)]] = count + useful
            batch = chosen_groups(joined([batch, fresh]), order.tolist())
        if rounds and "batch" in self.reward.normalised_by:
            batch.rewards.normalised = self.reward.normalised(batch.rewards.components, batch.group)
        return batch, rounds

    def _unused(self, batch: RolloutBatch, step: int) -> list[Prompt]:
        """Prompts that are not in the batch, in an order of the step's own."""
        used = {prompt.id for prompt in batch.prompts}
        others = [prompt for prompt in self.prompts if prompt.id not in used]
        order = np.random.default_rng([self.settings.seed, step, 1]).permutation(len(others))
        return [others[index] for index in order]

    def _noted(self, seen: PassRates, batches: Sequence[RolloutBatch]) -> PassRates:
        """Pass rates with those of more batches, if there is a curriculum."""
        curriculum = self.settings.curriculum
        if curriculum is None:
            return seen
        for batch in batches:
            ids = [prompt.id for prompt in batch.prompts]
            seen = seen.update(ids, batch.rewards.scores, memory=curriculum.memory, threshold=curriculum.threshold)
        return seen

    def _with_greedy(self, batch: RolloutBatch, step: int) -> RolloutBatch:
        """The batch with the scores of one greedy image per prompt."""
        prompts = batch.prompts[:: batch.group_size]
        sampling = replace(self.settings.sampling, top_k=1)
        greedy = self.policy.rollout(prompts, self.reward.at(step), group_size=1, seed=0, sampling=sampling)
        times = {part: seconds + greedy.times[part] for part, seconds in batch.times.items()}
        return replace(batch, greedy=greedy.rewards.normalised.repeat(batch.group_size, axis=0), times=times)


def _teaches_nothing(batch: RolloutBatch) -> np.ndarray:
    """[P] bool: groups without a difference in their rewards."""
    return needs_resampling(batch.rewards.normalised, batch.rewards.weights, batch.group)
