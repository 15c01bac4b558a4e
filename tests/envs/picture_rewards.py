"""Small real rewards for the environment's tests, cheap and different for almost any two pictures; equal pictures."""

from collections.abc import Sequence

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardResult


def redness(images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """Mean of the red channel in [0, 1]; "reads" a rough number of it."""
    means = np.array([image[..., 0].mean() / 255 for image in images], dtype=np.float32)
    return RewardResult(means, [{"read": f"{mean:.1f}"} for mean in means], {"square": means**2})


def redness_of_red(images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """Redness where the prompt asks for red; not applicable elsewhere."""
    result = redness(images, prompts)
    asked = np.array(["red" in prompt.text for prompt in prompts])
    return RewardResult(np.where(asked, result.scores, np.nan), result.details, result.metrics)


def failing_on_blue(images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
    """Redness, but a failure for every prompt that asks for blue."""
    result = redness(images, prompts)
    failures = {i: "blue is beyond it" for i, prompt in enumerate(prompts) if "blue" in prompt.text}
    if not failures:
        return result
    scores = np.array([np.nan if i in failures else score for i, score in enumerate(result.scores)], dtype=np.float32)
    raise RewardError("failing_on_blue", failures, RewardResult(scores, result.details, result.metrics))


def same_pictures(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for rounding: a value between two levels may fall either way in a batch of another size."""
    difference = np.abs(one.astype(int) - other.astype(int))
    return bool(difference.max() <= 1 and (difference > 0).mean() < 0.01)
