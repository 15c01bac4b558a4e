"""Weights divided between processes (FSDP2, DeepSpeed's ZeRO-3), beside a whole model that samples and is saved.

What is trained is a copy of the policy's module, of which each process holds a part. The policy's own model stays whole in
every process and follows it: it rolls out, is the base of references and critics, and is what checkpoints hold, so that all of
these are as in one process. That costs every device the weights once more; gradients and optimizer state, the greater part, are
divided.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from xomni_rl.policies.master_weights import MASTER, is_low
from xomni_rl.policies.settings import SettingsError

DIVIDING = (DistributedType.FSDP, DistributedType.DEEPSPEED)
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter, besides how many steps it has taken."""


class DividedWeights:
    """The copy that is trained, its optimizer, and the whole model that follows.

    `pull`, `push`, `collect` and `load` are for all processes at once; `push` and `load` are not for ZeRO-3.

    Args:
        module: the policy's; its parameters are those of `model`, under names of its own.
        model: the policy's model, with whole weights.
        leads: whether this process writes the checkpoints.
    Attributes:
        copy: of the module; to be prepared by the accelerator, and then taken over.
        collected: what `collect` found, in the process that leads: the optimizer's tensors and settings as
            `xomni_rl.policies.training_state.optimizer_state` gives those of an undivided one.
    """

    def __init__(self, module: nn.Module, model: nn.Module, *, leads: bool) -> None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        self._names = {name: names[parameter] for name, parameter in module.named_parameters()}
        self._whole = dict(model.named_parameters())
        self._leads = leads
        self.copy = copy.deepcopy(module).eval()
        self.collected: tuple[dict[str, Tensor], dict[str, Any]] = {}, {}
        self._masters: dict[str, Tensor] = {}

    def take_over(self, accelerator: Accelerator, prepared: nn.Module, optimizer: Optimizer) -> None:
        """Goes on with what the accelerator has made of the copy and of its optimizer."""
        parameters = dict(accelerator.unwrap_model(prepared).named_parameters())
        self._parts = {whole: parameters[name] for name, whole in self._names.items()}
        self._trained = [name for name, parameter in self._parts.items() if parameter.requires_grad]
        self._optimizer = optimizer

    def check_precision(self) -> None:
        """Raises: SettingsError if what is trained has 16 bits, of which small steps are rounded away; ZeRO-3 has masters."""
        parts = [self._parts[name] for name in self._trained]
        if any(is_low(part) and not _is_zero(part) for part in parts):
            raise SettingsError(
                "weights of 16 bits cannot take small steps: set trainer.mixed_precision=bf16, which divides float32 ones, or "
                "model.dtype=float32"
            )

    @torch.no_grad()
    def pull(self) -> None:
        """The whole model's weights become the trained ones."""
        for name in self._trained:
            self._whole[name].copy_(_gathered(self._parts[name]))

    @torch.no_grad()
    def push(self) -> None:
        """The trained weights become the whole model's, or the more precise ones that a checkpoint had of them."""
        for name in self._trained:
            weights = self._masters.get(name, self._whole[name].detach())
            self._parts[name].copy_(_like(weights.to(self._parts[name].device), self._parts[name]))
        self._masters = {}

    @torch.no_grad()
    def collect(self) -> None:
        """Brings the optimizer's state together in the process that leads, for a checkpoint."""
        tensors: dict[str, Tensor] = {}
        for name in self._trained:
            state = {kind: _moment(self._optimizer, self._parts[name], kind) for kind in (*MOMENTS, "step")}
            if is_low(self._whole[name]) and state["step"] is not None:
                state[MASTER] = _gathered(self._parts[name])
            if self._leads:
                tensors |= {f"{kind}/{name}": value.cpu() for kind, value in state.items() if value is not None}
        self.collected = tensors, {"class": "AdamW", "groups": [self._settings() | {"parameters": self._trained}]}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Restores what `collect` found, here or in a run of one process. Raises: ValueError if it is of other parameters."""
        [group] = settings["groups"]
        if set(group["parameters"]) != set(self._trained):
            raise ValueError("its optimizer is another one (groups differ)")
        self._masters = {name: tensors[f"{MASTER}/{name}"] for name in self._trained if f"{MASTER}/{name}" in tensors}
        for name in self._trained:
            part = self._parts[name]
            if f"step/{name}" in tensors:
                moments = {kind: _like(tensors[f"{kind}/{name}"].to(part.device), part) for kind in MOMENTS}
                self._optimizer.state[part] = moments | {"step": tensors[f"step/{name}"]}
        for current in self._optimizer.param_groups:
            kept = {key: value for key, value in group.items() if key != "parameters"}
            current.update({key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()})

    def _settings(self) -> dict[str, Any]:
        group = self._optimizer.param_groups[0]
        return {key: group[key] for key in (*self._optimizer.defaults, "initial_lr") if key in group}


def _is_zero(parameter: Tensor) -> bool:
    """Whether DeepSpeed divides it."""
    return hasattr(parameter, "ds_id")


def _gathered(parameter: Tensor) -> Tensor:
    if _is_zero(parameter):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _moment(optimizer: Optimizer, parameter: Tensor, kind: str) -> Tensor | None:
    """One of AdamW's values of a parameter; None if it has not been trained yet."""
    if _is_zero(parameter):
        if kind == "step":
            return torch.as_tensor(next(iter(optimizer.state.values()))["step"]).clone()
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, kind)
    value = optimizer.state.get(parameter, {}).get(kind)
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor divided as a parameter is."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value
