"""Batches of rollouts cut and joined by whole groups: what replacing some groups by others takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.images import as_image_array
from xomni_rl.rewards.composite import CompositeResult
from xomni_rl.stack.generation import left_padded, right_padded
from xomni_rl.stack.sampler import PADDING


def chosen_groups(batch: RolloutBatch, groups: Sequence[int]) -> RolloutBatch:
    """Some groups of a batch, in the given order, counted from 0 again; `times` stay those of the whole batch."""
    size = batch.group_size
    rows = np.concatenate([np.arange(group * size, (group + 1) * size) for group in groups])
    picked, index = torch.as_tensor(list(groups), device=batch.tokens.device), torch.as_tensor(rows, device=batch.tokens.device)
    return replace(
        batch,
        prompts=[batch.prompts[row] for row in rows],
        group=np.repeat(np.arange(len(groups), dtype=np.int64), size),
        input_ids=batch.input_ids[picked],
        attention_mask=batch.attention_mask[picked],
        negative_ids=None if batch.negative_ids is None else batch.negative_ids[picked],
        negative_mask=None if batch.negative_mask is None else batch.negative_mask[picked],
        tokens=batch.tokens[index],
        old_logprobs=batch.old_logprobs[index],
        entropy=batch.entropy[index],
        images=batch.images[rows],
        rewards=_rows(batch.rewards, rows),
        greedy=None if batch.greedy is None else batch.greedy[rows],
    )


def joined(batches: Sequence[RolloutBatch]) -> RolloutBatch:
    """One batch from several of one group size and reward, all or none guided, all or none with `greedy`.

    `times` are summed. Normalised scores stay as they are: those of a batch-wide normalisation belong to the part they came in.

    Raises: ValueError if they do not fit together.
    """
    first = batches[0]
    shapes = {(batch.group_size, batch.rewards.names) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(f"batches to join must have one group size and reward, not {sorted(shapes)}")
    for what, there in (
        ("guided", [b.negative_ids is not None for b in batches]),
        ("greedy", [b.greedy is not None for b in batches]),
    ):
        if any(there) and not all(there):
            raise ValueError(f"of batches to join all or none must be {what}, but {sum(there)} of {len(there)} are")
    starts = np.cumsum([0, *(len(batch.input_ids) for batch in batches)])
    negatives = [batch.negative_ids for batch in batches if batch.negative_ids is not None]
    negative_masks = [batch.negative_mask for batch in batches if batch.negative_mask is not None]
    times: dict[str, float] = {}
    for batch in batches:
        for part, seconds in batch.times.items():
            times[part] = times.get(part, 0.0) + seconds
    return RolloutBatch(
        prompts=[prompt for batch in batches for prompt in batch.prompts],
        group=np.concatenate([batch.group + start for batch, start in zip(batches, starts[:-1], strict=True)]),
        input_ids=left_padded([batch.input_ids for batch in batches]),
        attention_mask=left_padded([batch.attention_mask for batch in batches]),
        negative_ids=left_padded(negatives) if negatives else None,
        negative_mask=left_padded(negative_masks) if negative_masks else None,
        group_size=first.group_size,
        tokens=right_padded([batch.tokens for batch in batches], PADDING),
        old_logprobs=right_padded([batch.old_logprobs for batch in batches]),
        entropy=right_padded([batch.entropy for batch in batches]),
        images=as_image_array([image for batch in batches for image in batch.images]),
        rewards=_joined_rewards([batch.rewards for batch in batches]),
        times=times,
        greedy=np.concatenate([batch.greedy for batch in batches if batch.greedy is not None])
        if first.greedy is not None
        else None,
    )


def _rows(rewards: CompositeResult, rows: np.ndarray) -> CompositeResult:
    position = {int(row): index for index, row in enumerate(rows)}
    return CompositeResult(
        names=rewards.names,
        components=rewards.components[rows],
        normalised=rewards.normalised[rows],
        weights=rewards.weights,
        scores=rewards.scores[rows],
        failed=rewards.failed[rows],
        details=[rewards.details[row] for row in rows],
        metrics={name: values[rows] for name, values in rewards.metrics.items()},
        failures={position[row]: reason for row, reason in rewards.failures.items() if row in position},
    )


def _joined_rewards(parts: Sequence[CompositeResult]) -> CompositeResult:
    starts = np.cumsum([0, *(len(part.scores) for part in parts)])
    metrics = dict.fromkeys(name for part in parts for name in part.metrics)

    def stacked(values: Callable[[CompositeResult], Any]) -> np.ndarray:
        return np.concatenate([values(part) for part in parts])

    return CompositeResult(
        names=parts[0].names,
        components=stacked(lambda part: part.components),
        normalised=stacked(lambda part: part.normalised),
        weights=parts[0].weights,
        scores=stacked(lambda part: part.scores),
        failed=stacked(lambda part: part.failed),
        details=[detail for part in parts for detail in part.details],
        metrics={
            name: stacked(lambda part, name=name: part.metrics.get(name, np.full(len(part.scores), np.nan, np.float32)))  # type: ignore[misc]
            for name in metrics
        },
        failures={
            row + int(start): reason
            for part, start in zip(parts, starts[:-1], strict=True)
            for row, reason in part.failures.items()
        },
    )
