"""Which prompts a step trains on: those that the policy gets right now and then, by what their rollouts scored before.

A group whose rollouts are all right or all wrong has no advantage; the gradient is largest where about half are right. So
prompts are drawn with a weight that grows with p(1-p), p being the pass rate that was last seen of them.

Source: arXiv:2504.03380 keeps prompts whose pass rate lies in a band, and bounds the improvement from below by p(1-p);
arXiv:2510.01135 finds p near 0.5 best. Departs from both: pass rates are remembered from the training rollouts themselves (no
rollouts are thrown away, no value model predicts them), and prompts outside the band are drawn more seldom instead of never,
so that their pass rates are measured again. The average, the prior and the draw are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xomni_rl.policies.advantages.common import check_at_least, check_share
from xomni_rl.policies.shapes import check_shapes
from xomni_rl.prompts import Prompt

_STREAM = 0x70617373  # sets these draws apart from others keyed by (seed, step)


@dataclass(frozen=True)
class PassRate:
    """What was seen of one prompt.

    Attributes:
        score: exponential average of its rollouts' mean score, in [0, 1].
        count: how often it was updated, ≥ 1.
    """

    score: float
    count: int

    def __post_init__(self) -> None:
        check_share("score", self.score)
        check_at_least("count", self.count, 1)


@dataclass(frozen=True)
class PassRates:
    """What was seen of all prompts: the whole state of the curriculum. Never changed in place.

    Attributes:
        rates: prompt id → pass rate; a prompt not yet seen is not there.
    """

    rates: Mapping[str, PassRate] = field(default_factory=dict)

    def update(
        self, ids: Sequence[str], scores: np.ndarray, *, memory: float = 0.5, threshold: float | None = None
    ) -> PassRates:
        """The state after more rollouts.

        s ← memory · s + (1 - memory) · mean of the prompt's scores here;  s ← that mean the first time

        Args:
            ids: N prompt ids, one per rollout; those of one prompt count as one observation.
            scores: [N] float; NaN = not scored, left out. Scores as the reward gave them, not normalised.
            memory: share of the old average that stays, in [0, 1].
            threshold: a rollout counts 1 from this score on and 0 below it; None = the score itself, which must be in [0, 1].
        Returns: a new state; prompts without a scored rollout are as before.
        Raises: ValueError if lengths or the dtype do not fit, memory is out of range, or a score lies outside [0, 1] and there
            is no threshold.
        """
        check_share("memory", memory)
        if check_shapes(scores=(scores, "N", "float"))["N"] != len(ids):
            raise ValueError(f"scores must have one id each, but has shape {scores.shape} for {len(ids)} ids")
        passed = _passed(scores, threshold)
        seen: dict[str, list[float]] = {}
        for prompt_id, score in zip(ids, passed.tolist(), strict=True):
            if score == score:  # not NaN
                seen.setdefault(prompt_id, []).append(score)
        rates = dict(self.rates)
        for prompt_id, values in seen.items():
            mean, before = sum(values) / len(values), self.rates.get(prompt_id)
            score = mean if before is None else memory * before.score + (1.0 - memory) * mean
            rates[prompt_id] = PassRate(min(score, 1.0), 1 if before is None else before.count + 1)  # rounding may exceed 1
        return PassRates(rates)

    def choose(
        self,
        prompts: Sequence[Prompt],
        per_step: int,
        step: int,
        seed: int,
        *,
        low: float = 0.1,
        high: float = 0.9,
        floor: float = 0.05,
        prior: float = 0.5,
    ) -> list[Prompt]:
        """The prompts of a step, drawn without replacement with the weights of `sampling_weights`.

        Args:
            prompts: all that may be drawn, with different ids.
            per_step: how many to draw, in [1, number of prompts].
            step: from 1.
            seed: of the run; with the step it decides the draw.
            low, high, floor, prior: as in `sampling_weights`.
        Returns: per_step different prompts; a function of the state and the arguments alone, so that a run goes on from the
            state and its step.
        Raises: ValueError if there are too few prompts or a knob is out of range.
        """
        check_at_least("per_step", per_step, 1)
        if per_step > len(prompts):
            raise ValueError(f"per_step must be at most the number of prompts, but is {per_step} of {len(prompts)}")
        weights = self.sampling_weights(prompts, low=low, high=high, floor=floor, prior=prior)
        # Exponential clocks: the first per_step of independent waiting times with these rates are such a draw.
        waits = np.random.default_rng([seed, step, _STREAM]).exponential(size=len(prompts)) / weights
        return [prompts[i] for i in np.argsort(waits, kind="stable")[:per_step]]

    def sampling_weights(
        self, prompts: Sequence[Prompt], *, low: float = 0.1, high: float = 0.9, floor: float = 0.05, prior: float = 0.5
    ) -> np.ndarray:
        """Weight with which each prompt is drawn.

        w = floor + 4 p (1-p)  for low ≤ p ≤ high,  w = floor outside;  p = prior for a prompt not seen yet

        Args:
            prompts: P prompts.
            low, high: the band of pass rates that teach, 0 ≤ low ≤ high ≤ 1.
            floor: weight of a prompt that is always right or always wrong, > 0; 1 is the most that p adds to it.
            prior: pass rate of a prompt not seen yet, in [0, 1].
        Returns: [P] float64.
        Raises: ValueError if a knob is out of range.
        """
        for name, share in (("low", low), ("high", high), ("prior", prior)):
            check_share(name, share)
        if low > high:
            raise ValueError(f"low must be at most high, but is {low} against {high}")
        check_at_least("floor", floor, 0.0)
        if floor == 0:
            raise ValueError("floor must be above 0, or a prompt outside the band would never be measured again")
        rates = np.array([self.rates[prompt.id].score if prompt.id in self.rates else prior for prompt in prompts])
        return floor + np.where((low <= rates) & (rates <= high), 4.0 * rates * (1.0 - rates), 0.0)

    def to_json(self) -> dict[str, list[float]]:
        """JSON values: prompt id → [score, count]. Python writes floats so that they are read back bit for bit."""
        return {prompt_id: [rate.score, rate.count] for prompt_id, rate in self.rates.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PassRates:
        """What `to_json` gave. Raises: ValueError for anything else, naming the prompt."""
        rates = {}
        for prompt_id, entry in data.items():
            try:
                score, count = entry
                rates[prompt_id] = PassRate(score, count)
            except (TypeError, ValueError) as error:
                raise ValueError(f'pass rate of "{prompt_id}" must be [score, count], but is {entry!r}: {error}') from error
        return cls(rates)


def _passed(scores: np.ndarray, threshold: float | None) -> np.ndarray:
    """[N] float64 in [0, 1], NaN kept. Raises: ValueError if it would not be."""
    if threshold is not None:
        reached = scores >= np.asarray(threshold, dtype=scores.dtype)  # in the scores' precision: 0.9 must reach 0.9
        return np.where(np.isnan(scores), np.nan, reached.astype(np.float64))
    outside = np.flatnonzero((scores < 0) | (scores > 1))
    if len(outside):
        raise ValueError(
            f"scores must be in [0, 1], but one is {scores[outside[0]]}: set a threshold that makes it a pass or not"
        )
    return scores.astype(np.float64)
