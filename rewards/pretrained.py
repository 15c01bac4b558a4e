"""Models in transformers' folder layout: loaded whole or refused, from safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.models import Source

if TYPE_CHECKING:
    from torch import nn

_MODEL_FILES = (".safetensors", ".json", ".txt")


def load_pretrained(reward: str, model_class: Any, folder: Path, source: Source, option: str = "weights") -> nn.Module:
    """A model of a local folder, float32 on the CPU; nothing is unpickled, and nothing is left at random.

    Args:
        reward: name of the reward, for the message.
        model_class: class with transformers' `from_pretrained`.
        folder: with config.json and safetensors.
        source: where the published one comes from.
        option: the reward's option that names the folder, for the message.
    Raises: RewardUnavailableError if a file is missing or damaged, or a tensor is missing or of another shape.
    """
    import torch

    try:
        module, report = model_class.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # transformers, safetensors and JSON errors share no base class
        raise _unusable(reward, folder, _first_line(error), source, option) from error
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _unusable(reward, folder, f"the tensor {missing[0]}{more} is missing", source, option)
    loaded: nn.Module = module
    return loaded


def model_files(folder: Path) -> tuple[Path, ...]:
    """Files of a model folder that decide its scores: weights, configurations, vocabulary."""
    return tuple(sorted(path for path in folder.iterdir() if path.suffix in _MODEL_FILES))


def _unusable(reward: str, folder: Path, reason: str, source: Source, option: str) -> RewardUnavailableError:
    return RewardUnavailableError(f'reward "{reward}": {folder} cannot be loaded ({reason}); {source.remedy(option)}')


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
