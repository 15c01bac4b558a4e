"""Held-out evaluation: the same prompts with the same random streams every time, without touching training."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from xomni_rl.policies.policy import Sampler
from xomni_rl.policies.records import rollout_table
from xomni_rl.policies.settings import EvaluationSettings
from xomni_rl.prompts import Prompt


@dataclass(frozen=True)
class Evaluation:
    """A held-out evaluation.

    Attributes:
        score: mean of the evaluation reward over the prompts it applies to; NaN if it applies to none.
        figures: "ocr" → mean of that component, "ocr_exact" → mean of that metric, …; NaN ones are left out.
        table: one row per prompt, as `rollout_table` gives it.
    """

    score: float
    figures: dict[str, float]
    table: pa.Table


def evaluate(policy: Sampler, prompts: Sequence[Prompt], reward: Any, settings: EvaluationSettings | None = None) -> Evaluation:
    """Generates one image for each held-out prompt and scores it.

    Every prompt's random stream is fixed by the settings' seed and its id, so evaluations differ by the weights alone.
    Global random states are as before afterwards.

    Args:
        policy: what generates.
        prompts: held-out prompts, at least one.
        reward: the evaluation's composite reward.
        settings: seed, sampling, batch size, and how many prompts keep their image.
    Raises: ValueError without prompts; whatever the reward raises.
    """
    settings = settings or EvaluationSettings()
    if not prompts:
        raise ValueError("held-out evaluation needs at least one prompt")
    tables: list[pa.Table] = []
    scores: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {}
    with own_random_state(settings.seed):
        for start in range(0, len(prompts), settings.batch_size):
            chosen = prompts[start : start + settings.batch_size]
            batch = policy.rollout(chosen, reward, group_size=1, seed=settings.seed, sampling=settings.sampling)
            batch.group = batch.group + start
            rewards = batch.rewards
            for k, name in enumerate(rewards.names):
                columns.setdefault(name, []).append(rewards.components[:, k])
            for name, values in rewards.metrics.items():
                columns.setdefault(name, []).append(values)
            scores.append(rewards.scores)
            tables.append(rollout_table(batch, None, max(0, settings.grid_prompts - start)))
    means = {name: mean(np.concatenate(values)) for name, values in columns.items()}
    figures = {name: value for name, value in means.items() if math.isfinite(value)}
    return Evaluation(mean(np.concatenate(scores)), figures, pa.concat_tables(tables, promote_options="permissive"))


def mean(values: np.ndarray) -> float:
    """Mean [] of values [N] that apply (are not NaN); NaN if none does."""
    applicable = values[~np.isnan(values)].astype(np.float64)
    return float(applicable.mean()) if len(applicable) else math.nan


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global random states seeded inside, and as before afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
