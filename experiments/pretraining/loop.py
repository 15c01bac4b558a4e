"""The training loop that the recipe's stages share: progress bar, one-cycle schedule, and a state file to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """One stage's settings.

    Attributes:
        name: also the name of its random streams.
        steps: of its one-cycle schedule.
        batch: signs per step.
        learning_rate: the schedule's peak.
        weight_decay, beta2: of AdamW.
        save_every: steps between state files.
    """

    name: str
    steps: int
    batch: int
    learning_rate: float
    weight_decay: float
    beta2: float
    save_every: int = 200


def run_stage(
    stage: Stage, module: nn.Module, step_loss: Callable[[int], tuple[Tensor, dict[str, float]]], state: Path, console: Console
) -> None:
    """Trains `module` in place; goes on from `state` if the file is there, and removes it at the end.

    Args:
        stage: the settings.
        module: what is trained: its parameters that require gradients.
        step_loss: loss and its parts for a step number; all of its randomness is torch's global generator or its own.
        state: the state file, safetensors: module, optimizer moments, random state, step.
        console: where the progress bar goes.
    Raises: FloatingPointError if the loss is not finite; ValueError if the state file is of another stage or damaged.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=stage.weight_decay, betas=(0.9, stage.beta2))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.learning_rate, total_steps=stage.steps, pct_start=0.05)
    first = _load(state, module, optimizer, schedule) if state.exists() else 0
    module.train()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(stage.name, total=stage.steps, completed=first)
        for step in range(first, stage.steps):
            loss, parts = step_loss(step)
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(f"pre-training stage {stage.name!r}: loss {float(loss)} at step {step}; parts {parts}")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if step + 1 < stage.steps:
                schedule.step()
            figures = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            progress.update(task, advance=1, description=f"{stage.name}: {figures}")
            if (step + 1) % stage.save_every == 0 and step + 1 < stage.steps:
                _save(state, module, optimizer, schedule, step + 1)
    module.eval()
    state.unlink(missing_ok=True)


def _save(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, step: int
) -> None:
    """Writes the state file beside and renames it."""
    tensors = {f"module.{k}": v.clone().contiguous() for k, v in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v).clone() for k, v in moments.items()}
    tensors["random"] = torch.get_rng_state()
    scalars = {"step": step, "last_epoch": schedule.last_epoch, "groups": optimizer.state_dict()["param_groups"]}
    temporary = path.with_suffix(".writing")
    save_file(tensors, temporary, metadata={"scalars": json.dumps(scalars)})
    os.replace(temporary, path)


def _load(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> int:
    """Restores everything `_save` wrote. Returns the step to go on with."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            scalars = json.loads(file.metadata()["scalars"])
        module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} is damaged or of another recipe ({error}); delete it to start the stage over") from error
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": scalars["groups"]})
    schedule.last_epoch = scalars["last_epoch"]
    torch.set_rng_state(tensors["random"])
    return int(scalars["step"])
