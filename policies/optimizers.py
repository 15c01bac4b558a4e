"""The optimizers that a run can choose: AdamW as torch has it, or with moments of 8 bits."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xomni_rl.policies.master_weights import MasterWeights, is_low
from xomni_rl.policies.settings import SettingsError, TrainerSettings


def make_optimizer(parameters: Iterable[nn.Parameter], settings: TrainerSettings, *, divided: bool = False) -> Optimizer:
    """`settings.optimizer` over parameters; over float32 masters of those that have 16 bits, but where weights will be divided,
    which makes float32 ones of them.

    `adamw_8bit` is bitsandbytes' block-wise quantised AdamW (arXiv 2110.02861): both moments in one byte each, but those of
    tensors below 4096 elements, which stay float32.

    Raises: SettingsError if bitsandbytes is not installed.
    """
    trained = list(parameters)
    if not divided and any(is_low(parameter) for parameter in trained):
        return MasterWeights(trained, partial(_plain, settings))
    return _plain(settings, trained)


def _plain(settings: TrainerSettings, parameters: list[nn.Parameter]) -> Optimizer:
    arguments: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **arguments)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise SettingsError(
            "trainer.optimizer=adamw_8bit needs bitsandbytes, which is not installed: pip install 'xomni-rl[quantisation]', "
            "or trainer.optimizer=adamw"
        ) from error
    optimizer: Optimizer = AdamW8bit(parameters, **arguments)
    return optimizer


def as_tensor(value: Tensor | int) -> Tensor:
    """An optimizer's value for a file. bitsandbytes counts its steps in plain integers, and all parameters share one table of
    256 levels, which a file of tensors holds for each of them."""
    if not isinstance(value, Tensor):
        return torch.tensor(value)
    kept = value.detach().cpu().contiguous()
    return kept.clone() if kept.numel() <= 256 else kept


def as_it_was(value: Tensor) -> Tensor | int:
    """The opposite of `as_tensor`."""
    return int(value) if value.dtype == torch.int64 and value.dim() == 0 else value
