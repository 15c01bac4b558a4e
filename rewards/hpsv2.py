"""Which picture would people prefer for this prompt? Human Preference Score v2 and v2.1.

Scores      cosine of image and prompt in a fine-tuned CLIP, in [-1, 1]; generated pictures mostly get 0.2 … 0.35. Higher is
            better. Projects differ: the authors' package returns this cosine, their tables and leader board show it ×100, and
            some trainers multiply it by the learnt logit scale. We return the cosine, as the package does. `hpsv2` and
            `hpsv2.1` are two checkpoints, whose scores must not be mixed.
Not applicable (NaN)  never. A prompt over 77 tokens is cut there, and the detail `truncated` says so.
Cost        one pass of ViT-H/14 (4 GB in float32, 2 GB in bfloat16) per image at 224 px.
Weights     HPS_v2_compressed.pt and HPS_v2.1_compressed.pt of https://huggingface.co/xswu/HPSv2, Apache-2.0.
Ways to hack it  oversaturated, smooth, high-contrast pictures; one style whatever the prompt says. It sees 224 px: small text
            and small faults are invisible. Train on it with a second preference model as a log-only canary.
Source      arXiv:2306.09341. Departs from the authors' package: float32 unless asked otherwise (there: mixed precision); an
            image whose longest side is 224 px already is padded too (there it fails).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, RewardResult, rewards
from xomni_rl.rewards.clip import cosines_with_details
from xomni_rl.rewards.models import Placement, Source, finite_result
from xomni_rl.rewards.open_clip_backbone import OpenClipBackbone, write_tiny_clip

HPS_PAGE = "https://huggingface.co/xswu/HPSv2"


def hps_source(file: str) -> Source:
    """Where a checkpoint of the authors lies."""
    return Source(what=file, where=HPS_PAGE, licence="Apache-2.0", repo="xswu/HPSv2", file=file)


@rewards.register("hpsv2")
class HpsV2Reward(Reward):
    """Human Preference Score v2: cosine between image and prompt in a CLIP fine-tuned on people's choices.

    Args:
        weights: the checkpoint, or a hub repository that holds it; None = the authors'.
        architecture: open_clip's name of the model, or its configuration as a .json file (for tiny models).
        device: auto, cpu, cuda, cuda:1, …
        dtype: float32, bfloat16 or float16.
        offload: keep the model in the CPU's memory between calls.
        batch_size: images or prompts per forward pass.
    Raises: ValueError for another dtype or a batch size below 1.
    """

    name = "hpsv2"
    version = "1"
    range = (-1.0, 1.0)
    higher_is_better = True
    needs = ("text",)
    cost = "one pass of ViT-H/14 per image"
    source = hps_source("HPS_v2_compressed.pt")

    def __init__(
        self,
        weights: str | None = None,
        architecture: str = "ViT-H-14",
        device: str = "auto",
        dtype: str = "float32",
        offload: bool = False,
        batch_size: int = 32,
    ) -> None:
        self.backbone = OpenClipBackbone(
            self.name,
            str(architecture),
            None if weights is None else str(weights),
            self.source,
            Placement(device, dtype, offload),
            batch_size,
            preprocessing="pad",
        )

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `cosine`, and `truncated`, whether the prompt was too long for the model.

        Raises: RewardUnavailableError if the model cannot be had; RewardError where it gives no number.
        """
        if not images:
            return RewardResult(np.zeros(0, np.float32), [])
        return finite_result(self.name, *cosines_with_details(self.backbone, images, prompts))

    def load(self) -> None:
        self.backbone.load()

    def files(self) -> tuple[Path, ...]:
        return self.backbone.files()

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """The sign that is asked for, and noise."""
        from xomni_rl.prompt_sets.signs import render_sign

        good = render_sign("K7AX", "blue")
        noise = np.random.default_rng(0).integers(0, 256, good.shape).astype(np.uint8)
        return good, noise, Prompt(id="self-check", text='a blue sign that says "K7AX"', texts=("K7AX",))

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        import torch

        config, tensors = write_tiny_clip(folder)
        torch.save({"state_dict": tensors}, folder / cls.source.what)
        return {"architecture": str(config), "weights": str(folder / cls.source.what)}


@rewards.register("hpsv2.1")
class HpsV21Reward(HpsV2Reward):
    """Human Preference Score v2.1: v2 trained on more and cleaner choices; the same options."""

    name = "hpsv2.1"
    source = hps_source("HPS_v2.1_compressed.pt")
