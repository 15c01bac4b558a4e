"""How much would people like the picture, whatever was asked for? The LAION aesthetic predictor v2.

Scores      a mark that imitates people's 1 to 10; most pictures get 4 … 7. Higher is better. The head is linear and nothing
            holds the mark between 1 and 10, so the declared range is unbounded: this reward may gate others, but, without a
            floor, not be gated. Projects differ: some divide by 10; we return the mark.
Not applicable (NaN)  never; the prompt is not read.
Cost        one pass of ViT-L/14 (1.7 GB in float32) per image at 224 px, shared with `clip` on the same weights.
Weights     two: OpenAI's ViT-L/14 (MIT; `backbone`), and the head sac+logos+ava1-l14-linearMSE.pth (Apache-2.0; `weights`) of
            https://github.com/christophschuhmann/improved-aesthetic-predictor, which is aesthetic-model.pth on the hub. The
            head belongs to OpenAI's features: on another ViT-L/14 it gives plausible nonsense.
Ways to hack it  paintings, sunsets, shallow focus and vignettes, whatever the prompt asks for; trained on alone, it ends in one
            style for all prompts.
Source      https://github.com/christophschuhmann/improved-aesthetic-predictor. Departs from it: float32, where that runs
            OpenAI's float16 on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, RewardResult, rewards
from xomni_rl.rewards.models import Placement, SharedModel, Source, finite_result, load_tensors, read_tensors, shared_model
from xomni_rl.rewards.open_clip_backbone import OpenClipBackbone, write_tiny_clip
from xomni_rl.rewards.open_clip_files import find_file

if TYPE_CHECKING:
    from torch import nn

HEAD = Source(
    what="sac+logos+ava1-l14-linearMSE.pth",
    where="https://github.com/christophschuhmann/improved-aesthetic-predictor",
    licence="Apache-2.0",
    repo="trl-lib/ddpo-aesthetic-predictor",
    file="aesthetic-model.pth",
)
BACKBONE = Source(
    what="open_clip_model.safetensors",
    where="https://huggingface.co/timm/vit_large_patch14_clip_224.openai",
    licence="MIT",
    repo="timm/vit_large_patch14_clip_224.openai",
    file="open_clip_model.safetensors",
)


@rewards.register("aesthetic")
class AestheticReward(Reward):
    """The LAION aesthetic predictor v2: a linear head on CLIP's image features.

    Args:
        weights: the head's checkpoint; None = the published one.
        backbone: the CLIP model's checkpoint, or a tag of open_clip for it; None = OpenAI's.
        architecture: open_clip's name of the CLIP model, or its configuration as a .json file (for tiny models).
        device: auto, cpu, cuda, cuda:1, …
        dtype: of the CLIP model: float32, bfloat16 or float16; the head is float32.
        offload: keep the models in the CPU's memory between calls.
        batch_size: images per forward pass.
    Raises: ValueError for another dtype or a batch size below 1.
    """

    name = "aesthetic"
    version = "1"
    range = (-np.inf, np.inf)
    higher_is_better = True
    needs = ()
    cost = "one pass of ViT-L/14 per image, shared with clip on the same weights"

    def __init__(
        self,
        weights: str | None = None,
        backbone: str | None = None,
        architecture: str = "ViT-L-14-quickgelu",
        device: str = "auto",
        dtype: str = "float32",
        offload: bool = False,
        batch_size: int = 32,
    ) -> None:
        self.weights = None if weights is None else str(weights)
        self.backbone = OpenClipBackbone(
            self.name,
            str(architecture),
            None if backbone is None else str(backbone),
            BACKBONE,
            Placement(device, dtype, offload),
            batch_size,
            option="backbone",
        )

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Marks of N images; details: `mark`.

        Raises: RewardUnavailableError if a model cannot be had; RewardError where it gives no number.
        """
        import torch

        if not images:
            return RewardResult(np.zeros(0, np.float32), [])
        head = self._head()
        features = torch.from_numpy(self.backbone.image_features(images))
        with head.use() as device:
            marks: np.ndarray = head.module.get_submodule("layers")(features.to(device))[:, 0].cpu().numpy()
        return finite_result(self.name, marks, [{"mark": round(float(mark), 4)} for mark in marks])

    def load(self) -> None:
        self._head()

    def files(self) -> tuple[Path, ...]:
        return (*self.backbone.files(), find_file(self.name, self.weights, HEAD))

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A painted sunset over the sea, and noise."""
        noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
        return sunset(), noise, Prompt(id="self-check", text="a sunset over the sea")

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        import torch
        from safetensors.torch import save_file

        config, tensors = write_tiny_clip(folder, quick_gelu=True)
        backbone = folder / BACKBONE.what
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            torch.save(new_head(tensors["visual.proj"].shape[1]).state_dict(), folder / HEAD.what)
        return {"architecture": str(config), "backbone": str(backbone), "weights": str(folder / HEAD.what)}

    def _head(self) -> SharedModel:
        """The head, and with it the backbone, whose features tell its width."""
        path = find_file(self.name, self.weights, HEAD)
        width = self.backbone.load()
        there = self.backbone.placement

        def load() -> tuple[nn.Module, dict[str, Any]]:
            head = new_head(width)
            load_tensors(self.name, head, read_tensors(self.name, path, HEAD), path, HEAD)
            return head, {}

        return shared_model(("aesthetic", width, str(path)), Placement(there.device, "float32", there.offload), load)


def new_head(width: int) -> nn.Module:
    """The predictor's layers on features of that width, under the names of the published file: `layers.{0,2,4,6,7}`.

    The dropouts between them are there for their numbers; they do nothing in eval mode.
    """
    from torch import nn

    layers = nn.Sequential(
        nn.Linear(width, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
    return nn.ModuleDict({"layers": layers})


def sunset(side: int = 224) -> np.ndarray:
    """A painted sunset: sky in a gradient, a sun, its light on dark water; uint8 [side, side, 3]."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    height = np.clip(rows / 0.6, 0, 1)[..., None]
    sky = (1 - height) * np.array([60, 40, 110]) + height * np.array([255, 150, 60])
    distance = np.hypot(rows - 0.5, columns - 0.5)[..., None]
    sky = sky + (255 - sky) * np.clip(1.4 - distance / 0.09, 0, 1) * np.array([1, 0.95, 0.7])
    depth = np.clip((rows - 0.6) / 0.4, 0, 1)[..., None]
    water = (1 - depth) * np.array([170, 90, 70]) + depth * np.array([20, 20, 50])
    waves = 0.5 + 0.5 * np.sin(240 * rows + 6 * np.sin(9 * columns))
    glitter = waves * np.exp(-(((columns - 0.5) / (0.05 + 0.2 * (rows - 0.6).clip(0))) ** 2))
    water = water + glitter[..., None] * np.array([80, 55, 25])
    return np.clip(np.where(rows[..., None] < 0.6, sky, water), 0, 255).astype(np.uint8)
