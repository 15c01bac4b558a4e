"""Mean darkness of an image: a reward of another distribution."""

from collections.abc import Sequence

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardResult, reward


def black_and_white() -> tuple[np.ndarray, np.ndarray, Prompt]:
    """(good image, worthless image, prompt) of the self-check."""
    black = np.zeros((8, 8, 3), np.uint8)
    return black, 255 - black, Prompt("self-check", "a black square")


@reward(version="2", range=(0.0, 1.0), cost="a pass over the pixels", self_check=black_and_white)
def darkness(images: list[np.ndarray], prompts: Sequence[Prompt], power: float = 1.0) -> RewardResult:
    """(1 − mean value) ** power, in [0, 1]."""
    scores = np.array([(1.0 - image.mean() / 255) ** power for image in images], dtype=np.float32)
    return RewardResult(scores, [{"darkness": round(float(score), 4)} for score in scores])
