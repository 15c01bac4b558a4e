"""Lets a torchvision whose compiled operators cannot be loaded be imported all the same.

PyPI's torchvision for Linux is built for CUDA; beside a CPU-only torch its library does not load, and the import then stops at
fake kernels for operators that are not there. open_clip and transformers need its pure-Python transforms alone. So before the
first import of torchvision, the two operators are declared if they are missing: calling one still fails, importing does not.
"""

import importlib.machinery
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[Any] = []  # a declaration lives as long as its torch.library.Library


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; it is asked once, before torchvision is imported, and then leaves."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "torchvision":
            with suppress(ValueError):  # another thread was quicker
                sys.meta_path.remove(self)
                _declare_missing_operators()


def declare_on_import() -> None:
    """Has the operators declared, if need be, when torchvision is first imported; loads nothing itself."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


def _declare_missing_operators() -> None:
    spec = importlib.machinery.PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    for library in Path(spec.origin).parent.glob("_C*"):
        with suppress(OSError):
            torch.ops.load_library(str(library))  # loading it again, as torchvision does, is harmless
            return
    _kept.append(torch.library.Library("torchvision", "FRAGMENT"))
    for schema in _OPERATORS:
        _kept[-1].define(schema)
