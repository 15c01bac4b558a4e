"""Low-rank adapters on the policy's projections (arXiv:2106.09685), through peft: little to train, and a reference for nothing.

What is trained is W + (α/r)·B·A with W frozen. With the adapters switched off the model is the one training began from, so the
reference of a KL needs no copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xomni_rl.policies.settings import SettingsError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def add_adapters(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = TARGETS,
    full: Sequence[str] = (),
    *,
    seed: int = 0,
) -> None:
    """Puts adapters on a model's projections in place; from then on they alone are trained, and what `full` names.

    Args:
        model: of transformers.
        rank: r, ≥ 1.
        alpha: α; the adapters' product counts α/r times.
        targets: last names of the linear layers that get one.
        full: last names of layers that are trained as they are, such as mm_head; their first weights are kept for the
            reference.
        seed: of A; B begins at 0, so that the adapted model is at first the plain one.
    Raises: SettingsError for a value out of range, a layer that is not there, or without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SettingsError(f"model.lora needs peft ({error}): pip install 'xomni-rl[lora]'") from error
    if not isinstance(rank, int) or rank < 1 or not alpha > 0:
        raise SettingsError(f"model.lora: rank must be a whole number of 1 or more and alpha above 0, not {rank} and {alpha}")
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for option, names in (("targets", targets), ("full", full)):
        unknown = sorted(set(names) - linear)
        if unknown or not targets:
            raise SettingsError(f"model.lora.{option}: no layer {unknown}; this model has {', '.join(sorted(linear))}")
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # adapters are made on the CPU, whatever the model is on
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), modules_to_save=list(full) or None)
        inject_adapter_in_model(config, model)


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(True for _ in _adapted_layers(model))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model as it was before adapters were added, for as long as the context lasts."""
    layers = [*_adapted_layers(model), *(module for module in model.modules() if hasattr(module, "modules_to_save"))]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in trained:  # peft takes their gradients away with the adapters
            parameter.requires_grad_(True)


def adapter_scaling(model: nn.Module) -> float | None:
    """α/r of a model's adapters; None without any."""
    return next((float(layer.scaling["default"]) for layer in _adapted_layers(model)), None)


def merged_tensors(tensors: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """The weights of an adapted model as those of the plain one.

    Args:
        tensors: by name, as the adapted model has them.
        scaling: α/r.
    Returns: by the plain model's names, W + scaling · B·A where there is an adapter, and layers trained in full as trained.
    Raises: KeyError if half of an adapter is missing.
    """
    merged: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if ".lora_A." in name or ".lora_B." in name or ".original_module." in name:
            continue
        plain = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        layer, _, kind = name.rpartition(".base_layer.")
        if kind == "weight":
            low, high = (tensors[f"{layer}.lora_{side}.default.weight"] for side in "AB")
            value = value + scaling * (high @ low).to(value.dtype)
        merged[plain] = value
    return merged


def _adapted_layers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if hasattr(module, "lora_A"))
