"""How much does brightness vary over the image? RMS contrast; a control, no measure of quality.

Scores      standard deviation of luma (Rec. 601: 0.299 R + 0.587 G + 0.114 B, scaled to [0, 1], gamma as stored), in
            [0, 0.5]: 0 for a flat image, about 0.2 for a photograph, 0.5 for half black and half white; higher is better.
            Some divide by the mean or use linear light; this form has a bound and is defined for a black image.
Not applicable  never; the prompt is ignored.
Cost        two passes over the pixels, about 0.03 ms of one core per 32×96 sign, 1.5 ms at 512×512.
Weights     none.
Ways to hack it  posterising to black and white; any pattern of both does. As a control it shows whether another reward is
            bought with harder tones.
Source      Peli, 1990, "Contrast in complex images", eq. 5, root mean square contrast; population deviation.
"""

from collections.abc import Sequence

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, RewardResult, rewards

_LUMA = np.array([0.299, 0.587, 0.114]) / 255


@rewards.register("contrast")
class Contrast(Reward):
    """Root mean square contrast of the image's luma, in [0, 0.5]."""

    name = "contrast"
    version = "1"
    range = (0.0, 0.5)
    cost = "0.03 ms of one core per 32×96 image, 1.5 ms at 512×512"

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `mean_luma` in [0, 1]."""
        lumas = [image @ _LUMA for image in images]
        scores = np.array([luma.std() for luma in lumas], np.float32)
        return RewardResult(scores, [{"mean_luma": round(float(luma.mean()), 4)} for luma in lumas])

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """Half black and half white, and all grey."""
        good = np.zeros((64, 64, 3), np.uint8)
        good[:, 32:] = 255
        return good, np.full((64, 64, 3), 127, np.uint8), Prompt(id="self-check", text="anything")
