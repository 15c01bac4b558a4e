"""The device that a stack is put on, by the name a person gives."""

from __future__ import annotations

import torch

from .stack_folder import StackError


def usable_device(name: str, option: str) -> torch.device:
    """The device of that name; auto = the GPU if there is one.

    Devices are counted, not tried: of several processes each would begin to use the first GPU, and hold memory there.

    Args:
        name: auto, cpu, cuda, cuda:1, mps, ….
        option: where it was given, such as `model.device`, for the message.
    Raises: StackError if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise StackError(f"{option}={name}: that is no device; write auto, cpu, cuda or cuda:0") from error
    count = _count(device)
    if not count:
        raise StackError(f"{option}={name}: there is no {device.type.upper()} device here; use cpu or auto")
    if (device.index or 0) >= count:
        last = f"{device.type}:{count - 1}"
        raise StackError(f"{option}={name}: the last {device.type.upper()} device here is {last}; use it, or auto")
    return device


def _count(device: torch.device) -> int:
    """How many devices of that type there are."""
    try:
        return int(torch.get_device_module(device).device_count())
    except RuntimeError:  # a type that this PyTorch has no module for
        return 0
