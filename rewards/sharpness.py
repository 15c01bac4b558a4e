"""How strong are the image's edges? Variance of the Laplacian; a control, no measure of quality.

Scores      variance of the 4-neighbour Laplacian of the grey image, in squared grey levels: 0 for a flat image, hundreds for
            a sharp photograph, thousands for text; higher is better. It is returned raw, as in common use, where thresholds
            such as 100 are quoted; it cannot exceed 1020² (the Laplacian of 8-bit grey levels lies in ±1020).
Not applicable  never; the prompt is ignored.
Cost        one 3×3 filter, about 0.04 ms of one core per 32×96 sign, 1.5 ms at 512×512.
Weights     none.
Ways to hack it  noise, checkerboards and dithering score more than any picture; oversharpening halos. As a control it shows
            whether another reward is bought with high-frequency texture. Compare images of one size only: enlarging blurs.
Source      Pech-Pacheco et al., 2000, "Diatom autofocusing in brightfield microscopy"; OpenCV's grey and border (reflect 101).
"""

from collections.abc import Sequence

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, RewardResult, rewards


@rewards.register("sharpness")
class Sharpness(Reward):
    """Variance of the image's Laplacian, in squared grey levels."""

    name = "sharpness"
    version = "1"
    range = (0.0, 1020.0**2)
    cost = "0.04 ms of one core per 32×96 image, 1.5 ms at 512×512"

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `laplacian_variance`."""
        scores = np.array([laplacian_variance(image) for image in images], np.float32)
        return RewardResult(scores, [{"laplacian_variance": float(score)} for score in scores])

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A checkerboard of 8 px, and a flat image."""
        rows, columns = np.indices((64, 64)) // 8
        board = np.where((rows + columns) % 2, 255, 0).astype(np.uint8)
        return np.repeat(board[..., None], 3, -1), np.full((64, 64, 3), 90, np.uint8), Prompt(id="self-check", text="anything")


def laplacian_variance(image: np.ndarray) -> float:
    """Variance of the Laplacian [0, 1, 0; 1, −4, 1; 0, 1, 0] of an image, uint8 [H, W, 3], in squared grey levels."""
    import cv2

    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())
