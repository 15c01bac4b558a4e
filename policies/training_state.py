"""Everything a run needs to go on as if it had never stopped, to and from the files of a checkpoint.

    model/model.safetensors, model/config.json   the policy's weights; the folder loads with `from_pretrained`
    optimizer.safetensors                        the optimizer's tensors, `<kind>/<parameter>`
    rng.safetensors                              torch's generators
    state.json                                   the counters below, scheduler, optimizer settings, python's and numpy's RNG

Prompts' order, mini-batches and rollouts draw from streams keyed by (seed, step), so their position is the step itself.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from xomni_rl.policies.checkpoint import CheckpointError, damaged, verify
from xomni_rl.policies.divided import DividedWeights
from xomni_rl.policies.lora import merged_tensors
from xomni_rl.policies.master_weights import MasterWeights
from xomni_rl.policies.optimizers import as_it_was, as_tensor
from xomni_rl.policies.settings import SettingsError

Figures = dict[str, float]


@dataclass(frozen=True)
class TrainSummary:
    """What a run came to; `summary.json` holds the same.

    Attributes:
        folder: the run's.
        heldout: "before", "after", "best" → held-out figures with their "step"; {} if nothing was evaluated.
        train_seconds: seconds of training, across resumes, with checkpoints but without held-out evaluation.
        steps: training steps done.
        status: "finished", "max_seconds" or "stopped: <why>".
        alarms: how often each was raised.
        skipped_steps: steps without an update, because no rollout taught anything.
        seconds: seconds by part.
    """

    folder: Path
    heldout: dict[str, dict[str, float]]
    train_seconds: float
    steps: int
    status: str
    alarms: dict[str, int]
    skipped_steps: int
    seconds: dict[str, float]


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        step: training steps done.
        prompts: prompts drawn so far; the position in the prompts' order.
        seconds: seconds spent so far by part, as under `time` in the metrics, and "total".
        skipped: steps without an update, because no rollout taught anything.
        alarms: how often each alarm was raised.
        heldout: "before", "after", "best" → held-out figures with their "step".
        best_score: held-out mean reward of the best evaluation after step 0; None before the first.
        stopped: why training ended before its time; None if it did not.
        rollbacks: how often training went back to a checkpoint; each halves the learning rate.
        pass_rates: what a curriculum has seen, as `PassRates.to_json` gives it.
    """

    step: int = 0
    prompts: int = 0
    seconds: Figures = field(default_factory=dict)
    skipped: int = 0
    alarms: dict[str, int] = field(default_factory=dict)
    heldout: dict[str, Figures] = field(default_factory=dict)
    best_score: float | None = None
    stopped: str | None = None
    rollbacks: int = 0
    pass_rates: dict[str, list[float]] = field(default_factory=dict)

    @property
    def train_seconds(self) -> float:
        """Seconds of training, held-out evaluation left out: what `max_seconds` limits."""
        return self.seconds.get("total", 0.0) - self.seconds.get("heldout", 0.0)


def write_state(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    description: Mapping[str, Any],
    optimizer: Optimizer | DividedWeights,
    scheduler: LRScheduler,
    scaler: Any = None,
    extras: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a checkpoint's files into a folder; `extras` are tensors that only some algorithms have.

    Raises: OSError or SafetensorError if it cannot.
    """
    (folder / "model").mkdir()
    save_file(model_tensors(model), folder / "model" / "model.safetensors", metadata={"format": "pt"})
    (folder / "model" / "config.json").write_text(json.dumps(dict(description), indent=1, default=str) + "\n")
    tensors, settings = optimizer_state(model, optimizer)
    save_file(tensors, folder / "optimizer.safetensors")
    generators, others = random_state()
    save_file(generators, folder / "rng.safetensors")
    if extras:
        save_file({name: value.detach().cpu().contiguous() for name, value in extras.items()}, folder / "extras.safetensors")
    state = {
        "progress": asdict(progress),
        "scheduler": {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"},
        "optimizer": settings,
        "rng": others,
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=1) + "\n")


def read_state(
    checkpoint: Path,
    model: nn.Module,
    optimizer: Optimizer | DividedWeights,
    scheduler: LRScheduler,
    scaler: Any = None,
    load_extras: Callable[[Mapping[str, Tensor]], None] | None = None,
) -> Progress:
    """Verifies a checkpoint and restores everything from it; no weight is changed if it does not fit.

    Args:
        checkpoint: its folder.
        model, optimizer, scheduler, scaler: what it is restored into.
        load_extras: given the tensors that `write_state` had as `extras`; raises KeyError, ValueError or RuntimeError if they
            do not fit.
    Raises: CheckpointError for a damaged checkpoint, or one of another architecture or optimizer; SettingsError as
        `load_extras` does.
    """
    verify(checkpoint)
    weights = read_tensors(checkpoint / "model" / "model.safetensors")
    check_architecture(checkpoint, weights, model_tensors(model))
    moments = read_tensors(checkpoint / "optimizer.safetensors")
    generators = read_tensors(checkpoint / "rng.safetensors")
    extras = checkpoint / "extras.safetensors"
    kept = read_tensors(extras) if extras.exists() else {}
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        progress = Progress(**state["progress"])
        load_optimizer(model, optimizer, moments, state["optimizer"])
        scheduler.load_state_dict(scheduler.state_dict() | state["scheduler"])
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
        load_random_state(generators, state["rng"])
        if load_extras is not None:
            load_extras(kept)
    except SettingsError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise damaged(checkpoint / "state.json", f"it does not fit this run: {error}") from error
    load_model(model, weights)
    return progress


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter (a shared one once) and every persistent buffer by name, detached."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    shared = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: value for name, value in model.state_dict().items() if name not in shared}
    return {name: value.contiguous() for name, value in (parameters | buffers).items()}


def load_model(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies weights into a model of the same names and shapes."""
    with torch.no_grad():
        for name, value in (dict(model.named_parameters()) | model.state_dict()).items():
            if name in weights:
                value.copy_(weights[name])


def load_weights(checkpoint: Path, model: nn.Module) -> None:
    """Puts a checkpoint's weights into a model, for use without training; adapters are merged into them.

    Raises: CheckpointError for a damaged checkpoint or one of another architecture.
    """
    verify(checkpoint)
    weights = read_tensors(checkpoint / "model" / "model.safetensors")
    scaling = json.loads((checkpoint / "model" / "config.json").read_text(encoding="utf-8")).get("lora_scaling")
    if scaling is not None:
        weights = merged_tensors(weights, float(scaling))
    check_architecture(checkpoint, weights, model_tensors(model))
    load_model(model, weights)


def check_architecture(checkpoint: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless both have the same names and shapes, naming the first difference."""
    for name in sorted({*found, *expected}):
        there, here = (list(side[name].shape) if name in side else "absent" for side in (found, expected))
        if there != here:
            raise CheckpointError(
                f"checkpoint {checkpoint} is of another architecture: {name} is {there} there and {here} in the model; "
                f"give the model the run was begun with (model.path in its config.yaml)"
            )


def optimizer_state(model: nn.Module, optimizer: Optimizer | DividedWeights) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors as `<kind>/<parameter>`, and the parameter groups' settings as JSON values."""
    if isinstance(optimizer, DividedWeights):
        return optimizer.collected
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {
        f"{kind}/{names[parameter]}": as_tensor(value)
        for parameter, state in optimizer.state.items()
        for kind, value in state.items()
    }
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"parameters": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    stepping = optimizer.inner if isinstance(optimizer, MasterWeights) else optimizer
    return tensors, {"class": type(stepping).__name__, "groups": groups}


def load_optimizer(
    model: nn.Module, optimizer: Optimizer | DividedWeights, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> None:
    """Restores what `optimizer_state` gave. Raises: ValueError if it belongs to another optimizer or model."""
    if isinstance(optimizer, DividedWeights):
        optimizer.load(tensors, settings)
        return
    groups = settings["groups"]
    here = optimizer_state(model, optimizer)[1]
    for what, there in (("class", settings["class"]), ("groups", [group["parameters"] for group in groups])):
        found = here["class"] if what == "class" else [group["parameters"] for group in here["groups"]]
        if there != found:
            raise ValueError(f"its optimizer is another one ({what} differ)")
    order = [name for group in groups for name in group["parameters"]]
    state: dict[int, dict[str, Tensor | int]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        state.setdefault(order.index(name), {})[kind] = as_it_was(value)
    restored, position = [], 0
    for group, current in zip(groups, optimizer.param_groups, strict=True):
        values = {key: _like(current.get(key), value) for key, value in group.items() if key != "parameters"}
        count = len(group["parameters"])
        restored.append(values | {"params": list(range(position, position + count))})
        position += count
    optimizer.load_state_dict({"state": state, "param_groups": restored})


def _like(current: Any, value: Any) -> Any:
    """A JSON value in the type it had: JSON has no tuples."""
    return tuple(value) if isinstance(current, tuple) else value


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Torch's generators as uint8 tensors; python's and numpy's as JSON values."""
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, *rest = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
    version, internal, gauss = random.getstate()
    others = {"numpy": [name, keys.tolist(), *rest], "python": [version, list(internal), gauss]}
    return generators, others


def load_random_state(generators: Mapping[str, Tensor], others: Mapping[str, Any]) -> None:
    """Restores what `random_state` gave; generators of GPUs that are not there are left out."""
    torch.set_rng_state(generators["cpu"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda:{index}" in generators:
            torch.cuda.set_rng_state(generators[f"cuda:{index}"], index)
    name, keys, *rest = others["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = others["python"]
    random.setstate((version, tuple(internal), gauss))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises: CheckpointError if it is damaged."""
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise damaged(file, str(error)) from error
    return tensors
