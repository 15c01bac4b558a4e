"""The sides of the comparison with TRL, each in a process of its own that trains when it is told to.

Such a process loads everything, then trains as many steps a turn as a line on its standard input says, and answers on its
standard output (see `Gate`). Its last answer says what was done.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from xomni_rl.config import compose
from xomni_rl.envs.rollout import RolloutBatch
from xomni_rl.experiments.benchmarks._gate import Gate
from xomni_rl.experiments.run import build_parts, load_split, load_stack, plain_config
from xomni_rl.policies.batches import prompts_of_step
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.trainer import train

SAME_FOR_ALL = (
    *("model.device=cpu", "model.dtype=float32", "model.gradient_checkpointing=false"),
    *("trainer.warmup_steps=0", "trainer.decay_steps=null", "trainer.max_seconds=null"),
    *("trainer.evaluate_every=null", "trainer.checkpoint_every=null"),
)
"""float32 on the CPU, no activation computed twice, a constant learning rate, nothing evaluated, one checkpoint at the end.

A group's own defaults must not decide: those of `model=folder` are bfloat16 and recomputed activations, of our side alone."""


def job_config(steps: int, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """The configuration of a run of so many steps in a folder, resolved."""
    return plain_config(compose([*overrides, *SAME_FOR_ALL, f"trainer.steps={steps}", f"run={folder / 'run'}"]))


def serve(side: str, steps: int, overrides: Sequence[str]) -> None:
    """Trains one side at the orders of the process that started this one.

    Args:
        side: "ours"; "bridge", our trainer with TRL as its engine; or "trl", TRL's trainer alone.
        steps: training steps in all.
        overrides: of the default configuration, as on the command line.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    gate = Gate(sys.stdin, answers)
    with tempfile.TemporaryDirectory() as folder:
        engine = ["trainer.engine=trl"] if side == "bridge" else []
        config = job_config(steps, [*overrides, *engine], Path(folder))
        done = train_trl(config, gate) if side == "trl" else train_ours(config, gate)
    gate.report(**done)


class GatedPolicy(StackPolicy):
    """A policy that asks a gate before every rollout, and notes what it rolled out.

    Attributes:
        calls: [images, tokens] of each rollout.
        texts: the prompts' texts, those of one rollout after those of another.
    """

    def __init__(self, policy: StackPolicy, gate: Gate) -> None:
        super().__init__(policy.stack, policy.sampling)
        self.gate = gate
        self.calls: list[list[int]] = []
        self.texts: list[str] = []

    def rollout(self, *args: Any, **options: Any) -> RolloutBatch:
        self.gate.wait()
        batch = super().rollout(*args, **options)
        self.calls.append(list(batch.tokens.shape))
        self.texts += [prompt.text for prompt in batch.prompts[:: batch.group_size]]
        return batch


def train_ours(config: Mapping[str, Any], gate: Gate) -> dict[str, Any]:
    """A run as `xomni-rl train` makes it, with its tables, metrics and TensorBoard. Returns: see `_same_job.check_same`."""
    parts = build_parts(config)
    parts["policy"] = policy = GatedPolicy(parts["policy"], gate)
    described = trained_weights(policy.model)
    summary = train(config, **parts, console=Console(file=io.StringIO()))
    return described | {
        "calls": policy.calls,
        "prompts": policy.texts,
        "loss": config["algorithm"]["name"],
        "updates": summary.steps - summary.skipped_steps,
    }


def train_trl(config: Mapping[str, Any], gate: Gate) -> dict[str, Any]:
    """The same with TRL, see `_trl_peer`. Returns: likewise, and `first`, the first step as it was."""
    from xomni_rl.experiments.benchmarks._trl_peer import train_with_trl

    settings, seed = config["trainer"], int(config["seed"])
    prompts = load_split(config, "train", seed)
    per_step = settings["prompts_per_step"]
    batches = [prompts_of_step(prompts, per_step, step + 1, seed) for step in range(settings["steps"])]
    return train_with_trl(load_stack(config["model"]), batches, settings, Path(config["run"]), gate)


def trained_weights(model: nn.Module) -> dict[str, Any]:
    """Number, types and Euclidean norm of the parameters that training changes: `trainable`, `dtypes`, `weights`."""
    trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    norm = sum(float(parameter.double().square().sum()) for parameter in trained) ** 0.5
    return {
        "trainable": sum(parameter.numel() for parameter in trained),
        "dtypes": sorted({str(parameter.dtype) for parameter in trained}),
        "weights": norm,
    }
