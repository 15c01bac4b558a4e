"""How small does the image get as a JPEG? A target that needs no weights, for tests of a training loop; no measure of quality.

Scores      1 − bytes per pixel of the JPEG's compressed data (Pillow, quality 95, 4:2:0), cut to [0, 1]: a flat image scores
            about 1, noise 0 (it takes 1.2 bytes per pixel), a photograph 0.4 to 0.8; higher is better.
Units       others return −kB of the whole file (DDPO) or −kB / 500 (Flow-GRPO), without a floor and different for every
            image size. At one image size this score is a linear function of theirs, so group-normalised advantages are
            equal, down to the floor at 8 bits per pixel. Their figure is logged as the metric `kilobytes` (1000 bytes).
            The file's headers, the same 623 bytes for every image, do not count here; they count there.
Not applicable  never; the prompt is ignored.
Cost        one JPEG encoding, about 0.1 ms of one core per 32×96 sign, 3 ms at 512×512.
Weights     none.
Ways to hack it  every one: a blank image gets the best score. It is a target and a control, not a goal.
Source      DDPO, arXiv:2305.13301, and Flow-GRPO, arXiv:2505.05470; departs from both in units and floor, see above.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, RewardError, RewardResult, rewards

QUALITY = 95
LONGEST_SIDE = 65500
"""libjpeg's limit, in px."""
_START_OF_SCAN = b"\xff\xda"  # cannot occur in compressed data, where a zero byte follows every 0xff


@rewards.register("jpeg_compressibility")
class JpegCompressibility(Reward):
    """1 − bytes per pixel as a JPEG of quality 95: the flatter the image, the higher."""

    name = "jpeg_compressibility"
    version = "1"
    range = (0.0, 1.0)
    cost = "0.1 ms of one core per 32×96 image, 3 ms at 512×512"

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `bytes` of the file, `bits_per_pixel` of the compressed data; metric: `kilobytes`.

        Raises: RewardError for images with a side that the format cannot hold.
        """
        result = RewardResult(
            scores=np.full(len(images), np.nan, np.float32),
            details=[{} for _ in images],
            metrics={"kilobytes": np.full(len(images), np.nan, np.float32)},
        )
        failures: dict[int, str] = {}
        for index, image in enumerate(images):
            height, width = image.shape[:2]
            if max(height, width) > LONGEST_SIDE:
                failures[index] = f"{width}×{height} px do not fit into a JPEG, whose sides have at most {LONGEST_SIDE} px"
                continue
            file = jpeg(image)
            density = (len(file) - file.rindex(_START_OF_SCAN)) / (height * width)
            result.scores[index] = np.clip(1 - density, 0, 1)
            result.details[index] = {"bytes": len(file), "bits_per_pixel": round(8 * density, 4)}
            result.metrics["kilobytes"][index] = len(file) / 1000
        if failures:
            raise RewardError(self.name, failures, result)
        return result

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A flat image, and noise."""
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
        return np.full((64, 64, 3), 90, np.uint8), noise, Prompt(id="self-check", text="anything")


def jpeg(image: np.ndarray) -> bytes:
    """An image, uint8 [H, W, 3], as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
