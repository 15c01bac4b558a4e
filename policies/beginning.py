"""How a run begins or goes on: its accelerator and trackers, whether it is the same run, what is taken back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration

from xomni_rl.policies.checkpoint import CheckpointStore
from xomni_rl.policies.divided import DIVIDING
from xomni_rl.policies.records import RunFolder, RunFolderError, read_manifest, read_rows, write_json
from xomni_rl.policies.settings import SettingsError, TrainerSettings, changed_settings, check_resumable, flatten
from xomni_rl.policies.training_state import Progress
from xomni_rl.registry import unknown_name


def make_accelerator(settings: TrainerSettings, folder: RunFolder, device: torch.device) -> Accelerator:
    """The accelerator of a run: mixed precision, trackers, where they write.

    Raises: SettingsError for an unknown tracker, an optimizer that cannot be divided, or a checkpoint to go on from under
        DeepSpeed.
    """
    known = [str(tracker) for tracker in get_available_trackers()]
    for tracker in settings.trackers:
        if tracker not in known:
            raise SettingsError(unknown_name("or uninstalled tracker in trainer.trackers,", tracker, known))
    logs = folder.path / "tensorboard"
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)  # the text head takes no part in training
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=settings.mixed_precision,
        log_with=list(settings.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(folder.path), logging_dir=str(logs)),
        kwargs_handlers=[parallel],
    )
    if settings.optimizer != "adamw" and accelerator.distributed_type in DIVIDING:
        raise SettingsError(f"trainer.optimizer={settings.optimizer} cannot be divided: take adamw with FSDP2 and ZeRO-3")
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it has no data loader to ask, and clips by itself
        if folder.holds_run or settings.alarms.may_roll_back:
            raise SettingsError("under DeepSpeed no run goes on from a checkpoint or rolls back: use fsdp2.yaml")
        asked = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": accelerator.num_processes}
        clipping = {"gradient_clipping": settings.max_grad_norm or 0.0}
        accelerator.state.deepspeed_plugin.deepspeed_config.update(asked | clipping)
    return accelerator


def start_trackers(accelerator: Accelerator, config: Mapping[str, Any], step: int | None) -> None:
    """Starts the trackers; `step` is the one a run goes on from, None = a new run."""
    values = flatten(config).items()
    flat = {name: value if isinstance(value, int | float | str) else str(value) for name, value in values}
    options = {} if step is None else {"tensorboard": {"purge_step": step + 1}}
    accelerator.init_trackers("xomni-rl", flat if step is None else None, init_kwargs=options)


def check_same_run(folder: RunFolder, now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings that changed since the run began; sets the number of threads it had.

    Args:
        folder: of the run.
        now: the manifest as it would be written now.
    Raises: SettingsError for a setting that must not change, or other weights or prompts.
    """
    if not folder.manifest.exists():
        return {}
    before = read_manifest(folder.manifest)
    torch.set_num_threads(int(before["torch_threads"]))  # sums over threads depend on their number
    changes = changed_settings(before["config"], json.loads(json.dumps(now["config"], default=str)))
    check_resumable(changes)
    for what in ("weights", "prompts"):
        if before[what] != now[what]:
            differing = [name for name in now[what] if before[what].get(name) != now[what][name]]
            raise SettingsError(
                f"the {what} ({', '.join(differing)}) are not those that {folder.path} was begun with: "
                f"restore them, or start another run with run=FOLDER"
            )
    return changes


def take_back(
    folder: RunFolder, store: CheckpointStore, progress: Progress, *, begun: bool, changes: Mapping[str, list[Any]]
) -> None:
    """Removes everything written after the checkpoint that a run goes on from, and notes the resume in the manifest.

    Args:
        folder, store: of the run.
        progress: as the checkpoint has it.
        begun: whether there is a checkpoint; without one all is taken back.
        changes: settings that changed, see `check_same_run`.
    Raises: RunFolderError if checkpoints that there were are gone, or a file is damaged or cannot be written.
    """
    if not begun:
        _check_before_first_checkpoint(folder)
    step = progress.step if begun else -1
    store.clean(keep_until=max(step, 0))
    folder.truncate(step)
    if begun:
        store.point("last", step)
        store.point("best", int(progress.heldout.get("best", {}).get("step", -1)))
    if folder.manifest.exists():
        manifest = read_manifest(folder.manifest)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        manifest["resumes"].append({"time": when, "step": max(step, 0), "changed": dict(changes)})
        write_json(folder.manifest, manifest)


def _check_before_first_checkpoint(folder: RunFolder) -> None:
    """Raises: RunFolderError for a run that had checkpoints: going on would begin anew and take back all of it."""
    if not folder.manifest.exists():
        return
    every = (read_manifest(folder.manifest)["config"].get("trainer") or {}).get("checkpoint_every")
    reached = max((row["step"] for row in read_rows(folder.metrics)), default=0)
    if every is not None and reached > every:
        raise RunFolderError(
            f"{folder.checkpoints} holds no checkpoint, but the run went on to step {reached}, which would all be taken back: "
            "restore them, or start another run with run=FOLDER"
        )
