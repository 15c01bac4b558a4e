"""What a second reward on the same CLIP model costs: `clip` and `aesthetic` on one ViT-B/32 against `clip` alone."""

import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, build_reward

ARCHITECTURE = "ViT-B-32"
ASKED = 1.15


def measure(count: int = 64, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """Scores `count` new images and prompts by one reward, then as many others by two, in turns.

    The model has random weights of the real size; no image or prompt comes twice, so nothing is remembered between passes.

    Args:
        count: images of 224×224 px in a pass.
        repeats: counted pairs of passes, after one that isn't.
        seed: of images.
    Returns: `ratio` of the times of two rewards and of one (median over the pairs), `cpu_ratio`, the same of the process's CPU
        times, which a busy machine disturbs less, `asked` (what it may be), `ratios` of the pairs, `one_s` and `two_s` (median
        seconds of a pass), `memory_mb` that the two added to the process, at its peak, and `images`.
    """
    before = _peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        clip, aesthetic = _rewards(Path(folder))
        rng = np.random.default_rng(seed)
        one, two = [], []
        for _ in range(repeats + 1):
            one.append(_seconds([clip], rng, count))
            two.append(_seconds([clip, aesthetic], rng, count))
    seconds_one, seconds_two = np.array(one[1:]), np.array(two[1:])  # [repeats, 2]: by the clock and of the CPU
    ratios = seconds_two / seconds_one
    return {
        "ratio": float(np.median(ratios[:, 0])),
        "cpu_ratio": float(np.median(ratios[:, 1])),
        "asked": ASKED,
        "ratios": [round(float(ratio), 3) for ratio in ratios[:, 0]],
        "one_s": float(np.median(seconds_one[:, 0])),
        "two_s": float(np.median(seconds_two[:, 0])),
        "memory_mb": round(_peak_mb() - before),
        "images": count,
    }


def _rewards(folder: Path) -> tuple[Reward, Reward]:
    """`clip` and `aesthetic` on one randomly initialised model, loaded."""
    import open_clip
    import torch

    from xomni_rl.rewards.aesthetic import new_head
    from xomni_rl.rewards.open_clip_files import new_module

    config = open_clip.get_model_config(ARCHITECTURE)
    torch.save(new_module(config).state_dict(), folder / "backbone.pt")
    torch.save(new_head(config["embed_dim"]).state_dict(), folder / "head.pth")
    backbone = str(folder / "backbone.pt")
    clip = build_reward("clip", model=ARCHITECTURE, weights=backbone)
    aesthetic = build_reward("aesthetic", architecture=ARCHITECTURE, backbone=backbone, weights=str(folder / "head.pth"))
    for reward in (clip, aesthetic):
        reward.load()
    return clip, aesthetic


def _seconds(rewards: Sequence[Reward], rng: np.random.Generator, count: int) -> tuple[float, float]:
    """How long the rewards take, one after the other, for new images and prompts: by the clock, and of the CPU."""
    images = rng.integers(0, 256, (count, 224, 224, 3)).astype(np.uint8)
    prompts = [Prompt(str(index), f"picture {number}") for index, number in enumerate(rng.integers(2**62, size=count))]
    clock, cpu = time.perf_counter(), time.process_time()
    for reward in rewards:
        reward(images, prompts)
    return time.perf_counter() - clock, time.process_time() - cpu


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
