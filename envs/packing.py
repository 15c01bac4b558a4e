"""Rollouts as tensors and JSON, to be sent to another process, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.images import as_image_array
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeResult

TENSORS = ("input_ids", "attention_mask", "negative_ids", "negative_mask", "tokens", "old_logprobs", "entropy")
SCORES = ("components", "normalised", "weights", "scores", "failed")


def packed(batch: RolloutBatch) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A batch without prompts, images, details and greedy scores: tensors, and what else there is as JSON values."""
    rewards = batch.rewards
    tensors = {name: getattr(batch, name) for name in TENSORS if getattr(batch, name) is not None}
    tensors |= {name: torch.from_numpy(np.asarray(getattr(rewards, name))) for name in SCORES}
    tensors |= {f"metric/{name}": torch.from_numpy(np.asarray(values)) for name, values in rewards.metrics.items()}
    failures = {str(row): reason for row, reason in rewards.failures.items()}
    return tensors, {"names": list(rewards.names), "failures": failures, "times": batch.times}


def packed_pictures(batch: RolloutBatch) -> dict[str, Tensor]:
    """A batch's images and details, which weigh most and only whoever writes tables needs."""
    details = json.dumps(batch.rewards.details, default=str).encode()
    shapes = torch.tensor([image.shape for image in batch.images], dtype=torch.int64)
    pixels = np.concatenate([image.reshape(-1) for image in batch.images])
    return {
        "pixels": torch.from_numpy(pixels),
        "shapes": shapes,
        "details": torch.frombuffer(bytearray(details), dtype=torch.uint8),
    }


def unpacked(
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    pictures: Mapping[str, Tensor],
    prompts: Sequence[Prompt],
    group_size: int,
    device: torch.device,
) -> RolloutBatch:
    """The batch that `packed` and `packed_pictures` took apart.

    Args:
        tensors, about: of `packed`.
        pictures: of `packed_pictures`; {} = images of [N, 0, 0, 3] and empty details.
        prompts: P prompts.
        group_size: G.
        device: where tokens and their like are wanted.
    """
    count = len(prompts) * group_size
    metrics = {name.removeprefix("metric/"): value.numpy() for name, value in tensors.items() if name.startswith("metric/")}
    arrays: dict[str, Any] = {name: tensors[name].numpy() for name in SCORES}
    details = json.loads(pictures["details"].numpy().tobytes()) if pictures else [{} for _ in range(count)]
    failures = {int(row): str(reason) for row, reason in about["failures"].items()}
    fields: dict[str, Any] = {name: tensors[name].to(device) if name in tensors else None for name in TENSORS}
    return RolloutBatch(
        prompts=[prompt for prompt in prompts for _ in range(group_size)],
        group=np.repeat(np.arange(len(prompts), dtype=np.int64), group_size),
        group_size=group_size,
        images=_images(pictures) if pictures else np.zeros((count, 0, 0, 3), dtype=np.uint8),
        rewards=CompositeResult(tuple(about["names"]), **arrays, details=details, metrics=metrics, failures=failures),
        times=dict(about["times"]),
        **fields,
    )


def _images(pictures: Mapping[str, Tensor]) -> np.ndarray:
    shapes = pictures["shapes"].tolist()
    pieces = pictures["pixels"].split([height * width * depth for height, width, depth in shapes])
    return as_image_array([piece.view(shape).numpy() for piece, shape in zip(pieces, shapes, strict=True)])
