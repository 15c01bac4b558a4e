"""Small real rewards for the trainer's tests: numbers from pixels, in microseconds."""

import random
from collections.abc import Sequence

import numpy as np
import torch

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardResult


def redness(images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """Mean of the red channel in [0, 1]; "reads" a rough number of it."""
    means = np.array([image[..., 0].mean() / 255 for image in images], dtype=np.float32)
    return RewardResult(means, [{"read": f"{mean:.1f}"} for mean in means], {"square": means**2})


def noisy_redness(images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """Redness with noise from every global generator: only a run that restores all of them repeats it."""
    scores = redness(images, prompts).scores
    noise = [random.random() + np.random.rand() + torch.rand(()).item() for _ in images]
    return RewardResult(scores + 0.01 * np.array(noise, dtype=np.float32), [{} for _ in images])


def constant(images: list[np.ndarray], prompts: Sequence[Prompt]) -> np.ndarray:
    """The same for everything."""
    return np.full(len(images), 0.5, dtype=np.float32)


def not_applicable(images: list[np.ndarray], prompts: Sequence[Prompt]) -> np.ndarray:
    """Applies to nothing."""
    return np.full(len(images), np.nan, dtype=np.float32)


def failing(images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """Fails on everything."""
    raise RewardError("failing", dict.fromkeys(range(len(images)), "out of order"))


def failing_on_first(images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """Redness, but the first image of every batch cannot be scored."""
    result = redness(images, prompts)
    result.scores[0] = np.nan
    raise RewardError("failing_on_first", {0: "smudged"}, result)


def dull_for_even(images: list[np.ndarray], prompts: Sequence[Prompt]) -> np.ndarray:
    """Redness, but one and the same for prompts whose id ends in an even digit."""
    even = np.array([int(prompt.id[-1]) % 2 == 0 for prompt in prompts])
    return np.where(even, np.float32(0.5), redness(images, prompts).scores)


def red_corner(images: list[np.ndarray], prompts: Sequence[Prompt]) -> np.ndarray:
    """Mean of the red channel in the upper left 8 × 8 px, in [0, 1]; a VQ decoder's norms hold the whole image's mean still."""
    return np.array([image[:8, :8, 0].mean() / 255 for image in images], dtype=np.float32)
