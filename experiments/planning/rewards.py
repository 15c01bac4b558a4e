"""What the rewards of a configuration hold on a GPU: weights by stated parameter counts.

Every process loads its own rewards, on its own GPU unless their options say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
PARAMETERS: dict[str, float] = {
    "hpsv2": 0.986e9,  # open_clip's ViT-H-14
    "hpsv2.1": 0.986e9,
    "pickscore": 0.986e9,
    "aesthetic": 0.428e9,  # ViT-L-14
    "imagereward": 0.446e9,  # BLIP: ViT-L/16 and BERT-base with cross-attention
    "unified_reward": 8.29e9,  # Qwen2.5-VL-7B
    "vlm_alignment": 8.29e9,
}
"""Parameters of the published weights, as their pages and docs/rewards/cards.md state them."""
CLIP = {"embedded": 0.0, "ViT-B-32": 0.151e9, "ViT-L-14": 0.428e9, "ViT-H-14": 0.986e9}
"""Of `clip`, by the start of its model's name; the embedded one is too small to count."""
READERS = {"got_ocr2": 0.6e9, "vlm": 8.29e9}
"""Of `ocr`, by engine; the others read on the CPU."""
CPU_ONLY = ("rapidocr", "ppocrv4", "paddleocr")


@dataclass(frozen=True)
class RewardSize:
    """A reward's weights.

    Attributes:
        name: of the component.
        bytes: on every GPU; 0 = it works on the CPU, on a server, or is too small to count.
        offloaded: only while it scores.
        where: "GPU", "CPU", "server", or "unknown" for a reward whose size nobody stated.
        dtype: of the weights.
    """

    name: str
    bytes: int
    offloaded: bool = False
    where: str = "GPU"
    dtype: str = "float32"


def reward_sizes(reward: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> tuple[RewardSize, ...]:
    """Sizes of a composite's components and of those that the evaluation alone has."""
    found = [reward_size(name, entry) for name, entry in reward["components"].items()]
    if evaluation is not None and dict(evaluation) != dict(reward):
        found += [reward_size(f"evaluation/{name}", entry) for name, entry in evaluation["components"].items()]
    return tuple(found)


def reward_size(name: str, component: Mapping[str, Any]) -> RewardSize:
    """Size of one component: its options say where it works and in what dtype."""
    kind = str(component.get("reward", name))
    options = dict(component.get("options") or {})
    if kind == "remote" or _served(options):
        return RewardSize(name, 0, where="server")
    if kind == "ocr":
        engine = str(options.get("engine", "rapidocr"))
        options = dict(options.get("engine_options") or {})
        if engine in CPU_ONLY:
            return RewardSize(name, 0, where="CPU")
        if _served({**options, "vlm": options}):
            return RewardSize(name, 0, where="server")
        count: float | None = READERS.get(engine)
    elif kind == "clip":
        model = str(options.get("model", "embedded"))
        count = next((size for start, size in CLIP.items() if model.startswith(start)), None)
    else:
        count = PARAMETERS.get(kind)
    dtype = str((options.get("vlm") or {}).get("dtype", options.get("dtype", "float32")))
    if count is None:
        return RewardSize(name, 0, where="CPU" if kind in _without_weights() else "unknown", dtype=dtype)
    if str(options.get("device", "auto")) == "cpu":
        return RewardSize(name, 0, where="CPU", dtype=dtype)
    return RewardSize(name, int(count * WIDTHS[dtype]), offloaded=bool(options.get("offload", False)), dtype=dtype)


def _served(options: Mapping[str, Any]) -> bool:
    judge = options.get("vlm") or {}
    return str(judge.get("backend", "local")) == "server" or "url" in options


def _without_weights() -> tuple[str, ...]:
    """Rewards of pixels and rules alone."""
    return "colorfulness", "contrast", "jpeg_compressibility", "rules", "sharpness"
