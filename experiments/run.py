"""The main job from a configuration: build the parts, train, write the report, say what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from xomni_rl.experiments.report.page import build_report
from xomni_rl.policies.checkpoint import CheckpointStore, run_and_checkpoint
from xomni_rl.policies.collect import suitable_algorithm
from xomni_rl.policies.distributed import Team
from xomni_rl.policies.lora import add_adapters
from xomni_rl.policies.policy import StackPolicy
from xomni_rl.policies.records import RunFolder, RunFolderError, read_config
from xomni_rl.policies.settings import SettingsError, TrainerSettings
from xomni_rl.policies.trainer import train
from xomni_rl.policies.training_state import TrainSummary, load_weights
from xomni_rl.prompts import Prompt, prompt_sets
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.composite import CompositeReward, build_composite
from xomni_rl.rewards.health import check_before_training
from xomni_rl.stack.devices import usable_device
from xomni_rl.stack.family import Family, families
from xomni_rl.stack.static import compile_sampling

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADLINES = {"ocr_exact": "OCR exact match", "ocr_char": "character accuracy"}


def run_training(
    config: DictConfig | Mapping[str, Any], *, overrides: Sequence[str] | None = None, console: Console | None = None
) -> TrainSummary:
    """Trains as the configuration says, writes the report, prints held-out figures before → after and where it lies.

    Args:
        config: the composed configuration (groups model, reward, algorithm, prompts, trainer; run, resume, seed). With
            `resume` the run's own configuration counts, changed by `overrides`.
        overrides: what was asked for on the command line ("trainer.steps=50"); None = what Hydra knows, and outside
            Hydra every key of `config`.
        console: where progress and the closing table go; None = standard error and standard output.
    Returns: the summary, also in the folder's `summary.json`.
    Raises: what `xomni_rl.policies.trainer.train` raises; StackError, UnknownNameError, PromptError and ValueError for a
        part that cannot be built.
    """
    plain = plain_config(config)
    if plain.get("resume"):
        plain = resumed_config(plain, given_keys(plain, overrides))
    device = device_of(plain.get("model") or {})
    team = Team.current(device.type)
    if not plain.get("run") and not plain.get("resume"):
        plain["run"] = team.same(str(Path("runs") / f"{datetime.now():%Y-%m-%d_%H%M%S}"))
    parts = team.together(lambda: build_parts(plain))
    try:
        summary = train(plain, **parts, console=console)
    except KeyboardInterrupt:
        folder, _ = run_and_checkpoint(plain)
        (console or Console(stderr=True)).print(f"interrupted; go on with: xomni-rl train resume={folder.path}", soft_wrap=True)
        raise
    if team.leads:
        print_summary(summary, build_report(summary.folder), console or Console())
    return summary


def build_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that `train` is given, from a resolved configuration; nothing is written."""
    settings = TrainerSettings.from_config(config)
    folder, _ = run_and_checkpoint(config)
    if folder.holds_run and not config.get("resume"):
        folder.create()  # raises, before anything heavy is loaded
    reward = build_composite(config["reward"])
    suitable_algorithm(config, settings, reward)  # raises, before anything heavy is loaded
    evaluation = settings.evaluation.reward
    same = evaluation is None or dict(evaluation) == dict(config["reward"])
    evaluation_reward = reward if same else build_composite(evaluation or {})
    checks = checked_rewards(reward, None if same else evaluation_reward)
    stack = load_stack(config.get("model") or {})
    if adapters := (config.get("model") or {}).get("lora"):
        add_adapters(stack.model, **adapters, seed=settings.seed)
    model = config.get("model") or {}
    memory: dict[str, Any] = {
        "gradient_checkpointing": bool(model.get("gradient_checkpointing", False)),
        "rows_at_a_time": model.get("rows_at_a_time"),
        "reference_offload": bool(model.get("reference_offload", False)),
    }
    return {
        "policy": StackPolicy(stack, settings.sampling, **memory),
        "reward": reward,
        "evaluation_reward": evaluation_reward,
        "reward_checks": checks,
        "train_prompts": load_split(config, "train", settings.seed),
        "heldout_prompts": load_split(config, "heldout", settings.seed),
    }


def checked_rewards(reward: CompositeReward, evaluation: CompositeReward | None) -> list[dict[str, Any]]:
    """What the quick check found of every component, the evaluation's own ones under "evaluation/NAME".

    Raises: RewardUnavailableError for a component that cannot be loaded, or cannot score its own calibration pair.
    """
    found = [asdict(health) for health in check_before_training(reward)]
    for health in check_before_training(evaluation) if evaluation else ():
        found.append(asdict(health) | {"name": f"evaluation/{health.name}"})
    return found


def load_stack(model: Mapping[str, Any]) -> Any:
    """The stack that group `model` names, an `ImageStack`; X-Omni's is a `Stack`, which can do more.

    With `compile` X-Omni's samples with a compiled step.

    Raises: StackError, UnknownNameError for an unknown family, SettingsError for an unknown dtype or no family.
    """
    dtype, device = str(model.get("dtype", "float32")), device_of(model)
    if dtype not in DTYPES:
        raise SettingsError(unknown_name("model.dtype", dtype, DTYPES))
    path, options = str(model.get("path", "embedded")), dict(model.get("options") or {})
    family = _family(str(model.get("family", "xomni")))
    try:
        tiny = family.tiny_random().to(device, DTYPES[dtype]) if path == "tiny_random" else None
        stack = tiny or family.from_pretrained(path, device, DTYPES[dtype], **options)
    except TypeError as error:  # Python's own words name the option
        if not options:
            raise
        raise SettingsError(f"model.options: {error}") from error
    if model.get("compile"):
        compile_sampling(stack.model)
    return stack


def _family(name: str) -> Family:
    """The family of that name. Raises: UnknownNameError; SettingsError for an object that makes no stacks."""
    family = families.get(name)
    if lacking := [maker for maker in ("from_pretrained", "tiny_random") if not callable(getattr(family, maker, None))]:
        raise SettingsError(
            f"model.family={name} is no model family, it has no {' and no '.join(lacking)}: "
            f"take one of {', '.join(families.names())}, or a class with both"
        )
    return family


def device_of(model: Mapping[str, Any]) -> torch.device:
    """The device that group `model` names; of several processes each has its own one of that type. Raises: StackError."""
    return usable_device(str(model.get("device", "auto")), "model.device")


def load_split(config: Mapping[str, Any], split: str, seed: int) -> list[Prompt]:
    """One split of the configured prompt set; its held-out prompts are the same for every seed of a run."""
    prompts = config.get("prompts") or {}
    count = int(prompts.get(f"{split}_count", 4096 if split == "train" else 256))
    if split == "heldout" and count == 0:
        return []
    make = prompt_sets.get(str(prompts.get("set", "signs")))
    return make(split=split, count=count, seed=0 if split == "heldout" else seed, **dict(prompts.get("options") or {}))


def trained_stack(run: str | Path, which: str = "best", device: str | torch.device | None = None) -> Any:
    """The stack of a run with trained weights, for generating.

    Args:
        run: a run folder.
        which: "best", "last", or a checkpoint's name such as "step_000050".
        device: None = the one that the run was trained on.
    Raises: RunFolderError without such a checkpoint; CheckpointError for a damaged one; StackError.
    """
    folder = RunFolder(run)
    store = CheckpointStore(folder.checkpoints)
    checkpoint = store.named(which) if which in ("best", "last") else folder.checkpoints / which
    if checkpoint is None or not checkpoint.is_dir():
        saved = ", ".join(path.name for path in store.saved()) or "none"
        raise RunFolderError(f'{folder.path} has no checkpoint "{which}"; there are: {saved}')
    model = dict(read_config(folder.config)["model"])
    stack = load_stack(model if device is None else {**model, "device": str(device)})
    load_weights(checkpoint, stack.model)
    stack.name = str(checkpoint)
    return stack


def plain_config(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as plain resolved mappings and values."""
    container = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    if not isinstance(container, Mapping):
        raise SettingsError(f"the configuration must be a mapping, not {type(container).__name__}")
    return {str(key): value for key, value in container.items()}


def given_keys(config: Mapping[str, Any], overrides: Sequence[str] | None) -> list[str]:
    """Dotted keys that a person gave: of overrides, else of Hydra's, else every key of the configuration."""
    if overrides is None:
        if not HydraConfig.initialized():
            return [str(key) for key in config]
        overrides = list(HydraConfig.get().overrides.task)
    keys = [override.split("=", 1)[0].lstrip("+~").partition("@")[0] for override in overrides]
    return sorted(keys, key=lambda key: key.count("."))  # a group before what is inside it


def resumed_config(config: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """The configuration of the run to go on with, changed by the keys that were given now.

    Raises: RunFolderError if there is no such run, `run` is another folder, or its config.yaml is damaged.
    """
    folder, _ = run_and_checkpoint(config)
    if config.get("run") and Path(str(config["run"])).resolve() != folder.path.resolve():
        raise RunFolderError(
            f"resume={config['resume']} goes on in {folder.path}, not in run={config['run']}: leave run= out, or go on with a "
            "copy of the folder"
        )
    saved = OmegaConf.create(read_config(folder.config))
    composed = OmegaConf.create(dict(config))
    for key in given:
        if key != "run":
            _take_over(saved, key, OmegaConf.select(composed, key, default=_TAKEN_AWAY))
    OmegaConf.update(saved, "resume", str(config["resume"]), force_add=True)
    return plain_config(saved)


def _take_over(saved: DictConfig, key: str, value: Any) -> None:
    """Sets a key, or removes one that was taken away, as `~reward.components.ocr` does."""
    if value is not _TAKEN_AWAY:
        OmegaConf.update(saved, key, value, merge=False, force_add=True)
        return
    parent, _, name = key.rpartition(".")
    holder = OmegaConf.select(saved, parent) if parent else saved
    if isinstance(holder, DictConfig):
        holder.pop(name, None)


_TAKEN_AWAY = object()


def print_summary(summary: TrainSummary, report: Path, console: Console) -> None:
    """Prints held-out figures before → after, time, and the report's path."""
    before, after = summary.heldout.get("before", {}), summary.heldout.get("after", {})
    names = [name for name in HEADLINES if name in before] or [name for name in before if name != "step"]
    table = Table("held-out", "before", "after", title=f"{summary.steps} steps, {summary.train_seconds:.0f} s of training")
    for name in names:
        later = f"{after[name]:.3f}" if name in after else "–"
        table.add_row(HEADLINES.get(name, name), f"{before[name]:.3f}", later)
    if names:
        console.print(table)
    if summary.status != "finished":
        console.print(f"status: {summary.status}", highlight=False, soft_wrap=True)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
