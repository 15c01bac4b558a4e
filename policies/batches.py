"""A step's prompts and random seed, the figures of its rollouts, and the batch saved when a number goes wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.policies.evaluation import mean
from xomni_rl.policies.filters import zero_variance_share
from xomni_rl.policies.settings import SettingsError
from xomni_rl.policies.update import Experience, NonFiniteError
from xomni_rl.prompts import Prompt


def check_prompts(prompts: Sequence[Prompt], per_step: int) -> None:
    """Raises SettingsError if there are too few prompts for a step, or two with one id (they would share a stream)."""
    if len(prompts) < per_step:
        raise SettingsError(
            f"trainer.prompts_per_step is {per_step}, but there are {len(prompts)} training prompts: "
            f"raise prompts.train_count or lower it"
        )
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise SettingsError(f'two training prompts have the id "{prompt.id}"; ids seed random streams and must differ')
        seen.add(prompt.id)


def prompts_of_step(prompts: Sequence[Prompt], per_step: int, step: int, seed: int) -> list[Prompt]:
    """The prompts of a step: each pass over them in an order of its own, incomplete last batches left out.

    Args:
        prompts: all training prompts.
        per_step: P.
        step: from 1.
        seed: of the run; with the pass it decides the order.
    Returns: P different prompts; a function of the arguments alone, so a run that goes on needs no more than its step.
    """
    steps_per_pass = len(prompts) // per_step
    done_passes, position = divmod(step - 1, steps_per_pass)
    order = np.random.default_rng([seed, done_passes]).permutation(len(prompts))
    return [prompts[i] for i in order[position * per_step : (position + 1) * per_step]]


def stream_seed(seed: int, step: int) -> int:
    """Seed of a step's sampling streams: the same prompt gets other random numbers at another step. In [0, 2⁶³)."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def rollout_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Figures of scored rollouts, NaN where nothing applies.

    Returns: reward and reward_std (weighted average and its deviation over the batch), reward/<component>,
        reward/<metric>, not_applicable/<component> (how many rollouts it does not apply to; absent if it applies to all),
        entropy (nats per token), failed_share, zero_variance_share (absent if no group has a reward, or groups are of one).
    """
    rewards = batch.rewards
    scored = rewards.scores[~np.isnan(rewards.scores)].astype(np.float64)
    metrics = {"reward": mean(rewards.scores), "reward_std": float(scored.std()) if len(scored) else float("nan")}
    metrics |= {f"reward/{name}": mean(rewards.components[:, k]) for k, name in enumerate(rewards.names)}
    metrics |= {f"reward/{name}": mean(values) for name, values in rewards.metrics.items()}
    left_out = np.isnan(rewards.components[~rewards.failed]).sum(axis=0)
    metrics |= {f"not_applicable/{name}": float(count) for name, count in zip(rewards.names, left_out, strict=True) if count}
    metrics |= {"entropy": float(batch.entropy[batch.loss_mask].double().mean()), "failed_share": float(rewards.failed.mean())}
    share = zero_variance_share(rewards.normalised, rewards.weights, batch.group) if batch.group_size > 1 else None
    return metrics if share is None else metrics | {"zero_variance_share": share}


def save_batch(folder: Path, batch: RolloutBatch, experience: Experience, error: NonFiniteError) -> str:
    """Saves everything a non-finite number was computed from, as batch.safetensors and batch.json.

    Returns: the end of a sentence that says where it is, or why it is nowhere: the number itself is the graver error.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_batch(folder, batch, experience, error)
    except (OSError, SafetensorError) as failure:
        return f"the batch could not be saved ({failure})"
    return f"the batch is saved in {folder}"


def _write_batch(folder: Path, batch: RolloutBatch, experience: Experience, error: NonFiniteError) -> None:
    tensors = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "tokens": batch.tokens,
        "old_logprobs": batch.old_logprobs,
        "entropy": batch.entropy,
        "components": torch.from_numpy(batch.rewards.components),
        "normalised": torch.from_numpy(batch.rewards.normalised),
        "weights": torch.from_numpy(batch.rewards.weights),
        "advantages": experience.advantages,
        "keep": experience.keep,
    }
    if batch.images.dtype == object:
        tensors |= {f"images/{row}": torch.from_numpy(image) for row, image in enumerate(batch.images)}
    else:
        tensors["images"] = torch.from_numpy(batch.images)
    optional = {"reference": experience.reference, "negative_ids": batch.negative_ids, "negative_mask": batch.negative_mask}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / "batch.safetensors")
    described = {
        "error": str(error),
        "groups": error.groups,
        "group_size": batch.group_size,
        "components": batch.rewards.names,
        "prompts": [{"id": prompt.id, "text": prompt.text} for prompt in batch.prompts[:: batch.group_size]],
        "details": batch.rewards.details,
    }
    (folder / "batch.json").write_text(json.dumps(described, indent=1, default=str, ensure_ascii=False) + "\n")
