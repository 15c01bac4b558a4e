"""How colourful is the image? Hasler and Süsstrunk's measure; a control, no measure of quality.

Scores      √(σ²rg + σ²yb) + 0.3 √(μ²rg + μ²yb) with rg = R − G and yb = (R + G) / 2 − B, in 8-bit levels: 0 for a grey image,
            15 slightly, 33 moderately, 59 quite and 109 extremely colourful in the paper's words; higher is better. No image
            exceeds √(1.09 · 1.25) · 255 ≈ 297.7: σ + 0.3 μ ≤ √(1 + 0.3²) · √(σ² + μ²), and rg² + yb² ≤ 1.25 · 255², red's.
Not applicable  never; the prompt is ignored.
Cost        a few passes over the pixels, about 0.05 ms of one core per 32×96 sign, 2 ms at 512×512.
Weights     none.
Ways to hack it  saturation: two flat areas of opposite colours beat every picture. As a control it shows whether another
            reward, an aesthetic one above all, is bought with colour.
Source      Hasler and Süsstrunk, 2003, "Measuring colourfulness in natural images", M̂(3); population deviations.
"""

from collections.abc import Sequence

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, RewardResult, rewards

HIGHEST = 255 * (1.09 * 1.25) ** 0.5


@rewards.register("colorfulness")
class Colorfulness(Reward):
    """Hasler and Süsstrunk's colourfulness, in 8-bit levels."""

    name = "colorfulness"
    version = "1"
    range = (0.0, HIGHEST)
    cost = "0.05 ms of one core per 32×96 image, 2 ms at 512×512"

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `spread` (σ) and `mean` (μ) in the plane of opponent colours."""
        parts = [opponent_spread_and_mean(image) for image in images]
        scores = np.array([spread + 0.3 * mean for spread, mean in parts], np.float32)
        return RewardResult(scores, [{"spread": round(spread, 4), "mean": round(mean, 4)} for spread, mean in parts])

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """Four saturated colours, and their grey picture."""
        colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
        good = np.kron(colours, np.ones((32, 32, 1), np.uint8))
        grey = np.repeat(good.mean(-1, keepdims=True).astype(np.uint8), 3, -1)
        return good, grey, Prompt(id="self-check", text="anything")


def opponent_spread_and_mean(image: np.ndarray) -> tuple[float, float]:
    """(√(σ²rg + σ²yb), √(μ²rg + μ²yb)) of an image, uint8 [H, W, 3], in 8-bit levels."""
    red, green, blue = (image[..., channel].astype(np.float64) for channel in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std())), float(np.hypot(rg.mean(), yb.mean()))
