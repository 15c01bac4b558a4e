"""How much memory this process has held at most since it began."""

from __future__ import annotations

import resource
import sys

import torch

GIB = 2**30


def peak_memory() -> float:
    """The largest amount so far in GiB: allocated on the CUDA device if one is in use, else resident in this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
