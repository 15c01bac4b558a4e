"""Does the image show what the prompt says? Cosine between the image and the prompt in a CLIP-type model.

Scores      `units=cosine` (default): cosine of the two feature vectors, in [-1, 1]; `units=clipscore`: 2.5 · max(cosine, 0), in
            [0, 2.5]. Higher is better. Cosines of published models rarely leave 0.1 … 0.4. Projects differ: CLIPScore's paper
            multiplies by 2.5 and puts "A photo depicts" before the caption; torchmetrics multiplies by 100; logits carry the
            model's learnt scale (100 for OpenAI's). We return the cosine, which needs no constant to be compared, and
            leave the prompt as it is.
Not applicable (NaN)  never: every prompt has a text. A prompt longer than the model's context (77 tokens for most) is cut
            there, and the detail `truncated` says so.
Cost        one pass of the vision tower per image, shared with other rewards on the same model, and one of the text tower per
            new prompt. The embedded model: 2 ms of one core per image with its prompt.
Weights     `model=embedded` (default): inside the package, trained on its signs, meaningless elsewhere. Others: any model of
            open_clip by name with `weights` = one of its tags (`model=ViT-B-32-quickgelu weights=openai`, MIT) or a file, or a
            folder in open_clip's layout. With a file, take the name whose activation fits: OpenAI's weights are `-quickgelu`.
Ways to hack it  write the prompt into the picture; textures that please this model and no other (keep a second one as a
            log-only canary); counts, positions and negation are hardly seen.
Source      arXiv:2104.08718 (CLIPScore). Departs from it: no prefix, and the factor 2.5 is an option.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import Reward, RewardResult, rewards
from xomni_rl.rewards.models import Placement, finite_result
from xomni_rl.rewards.open_clip_backbone import OpenClipBackbone, write_tiny_clip
from xomni_rl.rewards.open_clip_files import EMBEDDED

CLIPSCORE_FACTOR = 2.5
RANGES = {"cosine": (-1.0, 1.0), "clipscore": (0.0, CLIPSCORE_FACTOR)}


@rewards.register("clip")
class ClipReward(Reward):
    """Cosine between image and prompt in a CLIP-type model of open_clip.

    Args:
        model: "embedded", a folder in open_clip's layout, a model configuration (.json), or open_clip's name of a model.
        weights: of a named model: a file, a tag of open_clip, or a hub repository; None for a folder.
        units: cosine or clipscore.
        device: auto, cpu, cuda, cuda:1, …
        dtype: float32, bfloat16 or float16.
        offload: keep the model in the CPU's memory between calls.
        batch_size: images or prompts per forward pass.
    Raises: ValueError for other units or dtype, a batch size below 1, or weights beside the embedded model.
    """

    name = "clip"
    version = "1"
    range = RANGES["cosine"]
    higher_is_better = True
    needs = ("text",)
    cost = "one pass of the vision tower per image; embedded: 2 ms of one core with its prompt"

    def __init__(
        self,
        model: str = EMBEDDED,
        weights: str | None = None,
        units: str = "cosine",
        device: str = "auto",
        dtype: str = "float32",
        offload: bool = False,
        batch_size: int = 32,
    ) -> None:
        if units not in RANGES:
            raise ValueError(unknown_name("units", str(units), tuple(RANGES)))
        self.units, self.range = units, RANGES[units]
        weights = None if weights is None else str(weights)
        self.backbone = OpenClipBackbone(
            self.name, str(model), weights, placement=Placement(device, dtype, offload), batch_size=batch_size
        )

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `cosine`, and `truncated`, whether the prompt was too long for the model.

        Raises: RewardUnavailableError if the model cannot be had; RewardError where it gives no number.
        """
        if not images:
            return RewardResult(np.zeros(0, np.float32), [])
        cosines, details = cosines_with_details(self.backbone, images, prompts)
        if self.units == "clipscore":
            cosines = CLIPSCORE_FACTOR * np.maximum(cosines, 0)  # NaN stays NaN
        return finite_result(self.name, cosines, details)

    def load(self) -> None:
        self.backbone.load()

    def files(self) -> tuple[Path, ...]:
        return self.backbone.files()

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """The sign that is asked for, and an empty one of another colour."""
        from xomni_rl.prompt_sets.signs import render_sign

        prompt = Prompt(id="self-check", text='a blue sign that says "K7AX"', texts=("K7AX",))
        return render_sign("K7AX", "blue"), render_sign("", "orange"), prompt

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        from safetensors.torch import save_file

        config, tensors = write_tiny_clip(folder)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "open_clip_model.safetensors")
        return {"model": str(config), "weights": str(folder / "open_clip_model.safetensors")}


def cosines_with_details(
    backbone: OpenClipBackbone, images: Sequence[np.ndarray], prompts: Sequence[Prompt]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Cosines float32 [N] in [-1, 1] of N ≥ 1 images and their prompts' texts, with the details `cosine` and `truncated`."""
    seen = backbone.image_features(images)
    said, cut = backbone.text_features([prompt.text for prompt in prompts])
    cosines = np.clip((seen * said).sum(axis=1), -1, 1)  # rounding may leave the interval
    details = [{"cosine": round(float(c), 6), "truncated": t} for c, t in zip(cosines, cut, strict=True)]
    return cosines, details
