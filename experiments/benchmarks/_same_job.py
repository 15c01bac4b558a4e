"""Did both trainers do the same? Counts must be equal, and our loss and gradient at TRL's tokens must be TRL's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from xomni_rl.experiments.run import load_split, load_stack
from xomni_rl.policies.algorithms.base import build_algorithm
from xomni_rl.policies.batches import prompts_of_step
from xomni_rl.policies.policy import StackPolicy, TokenBatch

COUNTED = ("calls", "prompts", "trainable", "dtypes", "loss", "updates")
"""[images, tokens] of each rollout, prompts in order, number and types of trained parameters, kind of loss, optimizer steps."""
TOLERANCE = {"weights": 1e-9, "loss": 1e-5, "grad_norm": 2e-4, "entropy": 5e-5}
"""Relative for `weights` and `grad_norm`; absolute for `entropy` (nats) and for the loss, which is 0 at the first step but for
rounding: advantages of a group sum to 0. TRL's norm is a float32 sum over all ids: 4e-5 from ours at 168,512 of them, where
weights rounded to bfloat16 on one side are 2e-4 away in the norm and 3e-4 in the entropy."""


def check_same(done: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, float]:
    """Compares what the sides say they did.

    Args:
        done: side → what `COUNTED` lists, and `weights` (their norm before training); that of "trl" also has `first`: tokens,
            rewards, loss, grad_norm and entropy of its first step.
        config: the job's.
    Returns: how far our figures are from TRL's at its first step: `loss`, `entropy`, and `grad_norm` as a share of it.
    Raises: RuntimeError for the first thing that differs, with both values.
    """
    ours = done["ours"]
    for side, theirs in done.items():
        for name in COUNTED:
            _require(ours[name] == theirs[name], name, ours[name], theirs[name], side)
        same_weights = abs(ours["weights"] / theirs["weights"] - 1) <= TOLERANCE["weights"]
        _require(same_weights, "the norm of the weights", ours["weights"], theirs["weights"], side)
    first = done["trl"]["first"]
    found = first_step(first["tokens"], first["rewards"], config)
    differences = {name: abs(found[name] - first[name]) for name in found}
    differences["grad_norm"] /= first["grad_norm"]
    for name, difference in differences.items():
        _require(difference <= TOLERANCE[name], f"{name} of the first step", found[name], first[name], "trl")
    return differences


def _require(same: bool, what: str, ours: Any, theirs: Any, side: str) -> None:
    if not same:
        shown = [text if len(text) <= 80 else f"{text[:80]}…" for text in (str(ours), str(theirs))]
        raise RuntimeError(f"not the same job: {what}: {shown[0]} with us, {shown[1]} with {side}")


def first_step(tokens: list[list[int]], rewards: list[float], config: Mapping[str, Any]) -> dict[str, float]:
    """Our loss, gradient norm (before clipping) and mean entropy at given tokens of the first step's prompts.

    Args:
        tokens: N rows of T image tokens, group-major.
        rewards: N.
        config: of the job; its initial weights and its algorithm are used.
    """
    settings, seed = config["trainer"], int(config["seed"])
    prompts = prompts_of_step(load_split(config, "train", seed), settings["prompts_per_step"], 1, seed)
    stack = load_stack(config["model"])
    policy = StackPolicy(stack)
    ids, mask = stack.encode_prompts([prompt.text for prompt in prompts])
    batch = TokenBatch(ids, mask, None, None, torch.tensor(tokens), settings["group_size"])
    algorithm = build_algorithm(config["algorithm"]["name"], config["algorithm"]["options"])
    group = np.repeat(np.arange(len(prompts)), settings["group_size"])
    advantages = algorithm.advantage(np.array(rewards, dtype=np.float32)[:, None], np.ones(1, np.float32), group)
    logprobs, entropy = policy.logprobs(batch, with_entropy=True)
    assert entropy is not None
    everything = torch.ones_like(logprobs, dtype=torch.bool)
    loss, _ = algorithm.loss(logprobs, logprobs.detach(), torch.from_numpy(advantages), everything, None)
    loss.backward()
    gradients = [parameter.grad for parameter in policy.model.parameters() if parameter.grad is not None]
    norm = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
    return {"loss": float(loss.detach()), "grad_norm": norm, "entropy": float(entropy.detach().mean())}
