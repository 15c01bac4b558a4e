"""One component of a composite: a reward with its weight, and what becomes of its failures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import FunctionReward, Reward, RewardError, RewardResult, RewardUnavailableError, checked_result
from xomni_rl.rewards.combine import NORMALISATIONS
from xomni_rl.rewards.routing import Route
from xomni_rl.rewards.schedule import Schedule


@dataclass(frozen=True)
class Component:
    """A reward under a name of its own.

    Args:
        name: in configurations, tables and logs.
        reward: what scores.
        weight: in the average; 0 = logged only, negative = a penalty.
        normalisation: none, batch or group; None = the composite's.
        cap: in the reward's own unit; a score better than it counts as it. None = no cap.
        schedule: factor of the weight by training step; None = 1.
        when: prompts that it is asked about; to others it does not apply (NaN). None = all.
    Raises: ValueError for a weight or cap that makes no sense.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    normalisation: str | None = None
    cap: float | None = None
    schedule: Schedule | None = None
    when: Route | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.weight):
            raise ValueError(f'weight of "{self.name}" must be finite, got {self.weight}')
        if self.normalisation is not None and self.normalisation not in NORMALISATIONS:
            raise ValueError(unknown_name(f'normalisation of "{self.name}"', str(self.normalisation), NORMALISATIONS))
        if self.cap is not None:
            low, high = self.reward.range
            inside = low < self.cap <= high if self.reward.higher_is_better else low <= self.cap < high
            if not (np.isfinite(self.cap) and inside):
                raise ValueError(
                    f'cap of "{self.name}" must be better than the worst score and inside [{low:g}, {high:g}], got {self.cap:g}'
                )

    @property
    def sign(self) -> float:
        """1, or -1 for a lower-is-better reward: raw score · sign is better when higher."""
        return 1.0 if self.reward.higher_is_better else -1.0

    @property
    def scorer(self) -> Any:
        """The object that is called in the end; two components with the same one must not call it at the same time."""
        return self.reward.function if isinstance(self.reward, FunctionReward) else self.reward

    @property
    def reads_prompts(self) -> bool:
        """Whether a score depends on the prompt: on fields that the reward needs, or on the route. May ask a server."""
        return self.when is not None or bool(self.reward.needs)

    def oriented(self, scores: np.ndarray) -> np.ndarray:
        """float32 [N]: raw scores [N] turned so that higher is better, and capped; NaN kept."""
        turned = (scores * self.sign).astype(np.float32)
        return turned if self.cap is None else np.minimum(turned, np.float32(self.cap * self.sign))

    def is_asked(self, prompts: Sequence[Prompt]) -> bool:
        """Whether any of these samples is routed to the component."""
        return bool(prompts) if self.when is None else any(self.when.applies(prompt) for prompt in prompts)

    def scored(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; the reward is called once, with the samples routed to it, and not at all if there are none.

        Raises: RewardError under the component's name, with indices among the N; RewardUnavailableError.
        """
        if self.when is None:
            return self._called(images, prompts)
        routed = self.when.indices(prompts)
        spread = _spreader(routed, len(images), f'not asked: the prompt does not fit "{self.when.rule}"')
        if not len(routed):
            return spread(RewardResult(np.zeros(0), []))
        try:
            return spread(self._called([images[index] for index in routed], [prompts[index] for index in routed]))
        except RewardError as error:
            failures = {int(routed[index]): reason for index, reason in error.failures.items()}
            partial = None if error.partial is None else spread(error.partial)
            raise RewardError(self.name, failures, partial) from error.__cause__

    def scored_where_possible(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> tuple[RewardResult, dict[int, str]]:
        """Scores of N images, NaN for the samples that fail, and sample index → reason of those.

        After a failure without a partial result the samples are scored one by one.
        """
        try:
            return self.scored(images, prompts), {}
        except RewardError as error:
            if error.partial is not None:
                return error.partial, error.failures
            return self._one_by_one(images, prompts)

    def _called(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """The reward's result, checked; any failure of it is a RewardError under the component's name."""
        try:
            result = self.reward(images, prompts)
        except RewardUnavailableError:
            raise
        except RewardError as error:
            raise self._renamed(error, len(images)) from error
        except (Exception, SystemExit) as error:
            # Rewards from elsewhere raise what they like, and libraries exit; which sample it was is not known.
            reason = f"{type(error).__name__}: {error}"
            raise RewardError(self.name, dict.fromkeys(range(len(images)), reason)) from error
        return checked_result(self.name, result, len(images), self.reward.range)

    def _renamed(self, error: RewardError, count: int) -> RewardError:
        """The reward's error under the component's name, its partial result checked like a whole one."""
        if error.partial is None:
            return RewardError(self.name, error.failures)
        try:
            return RewardError(self.name, error.failures, checked_result(self.name, error.partial, count, self.reward.range))
        except RewardError as worse:  # scores out of range among those said to be good
            return RewardError(self.name, worse.failures | error.failures, worse.partial)

    def _one_by_one(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> tuple[RewardResult, dict[int, str]]:
        failures: dict[int, str] = {}
        scores = np.full(len(images), np.nan, dtype=np.float32)
        details: list[dict[str, Any]] = [{} for _ in images]
        metrics: dict[str, np.ndarray] = {}
        for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            try:
                single = self.scored([image], [prompt])
            except RewardError as error:
                failures[index] = "; ".join(error.failures.values())
                details[index] = {"reason": failures[index]}
                continue
            scores[index], details[index] = single.scores[0], single.details[0]
            for name, values in single.metrics.items():
                metrics.setdefault(name, np.full(len(images), np.nan, dtype=np.float32))[index] = values[0]
        return RewardResult(scores, details, metrics), failures


def _spreader(positions: np.ndarray, count: int, reason: str) -> Callable[[RewardResult], RewardResult]:
    """A function that puts a result of M samples at its positions among N: NaN and the reason elsewhere."""

    def spread_array(values: np.ndarray) -> np.ndarray:
        whole = np.full(count, np.nan, dtype=np.float32)
        whole[positions] = values
        return whole

    def spread(result: RewardResult) -> RewardResult:
        details: list[dict[str, Any]] = [{"reason": reason} for _ in range(count)]
        for position, detail in zip(positions, result.details, strict=True):
            details[position] = detail
        metrics: Mapping[str, np.ndarray] = result.metrics
        return RewardResult(
            spread_array(result.scores), details, {name: spread_array(values) for name, values in metrics.items()}
        )

    return spread
