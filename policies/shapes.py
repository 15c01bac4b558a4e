"""One check of shapes and dtypes for every function of the policy maths."""

from __future__ import annotations

from typing import Any

_KINDS = {"float": ("float",), "int": ("int",), "bool": ("bool",), "number": ("float", "int")}


def check_shapes(**arrays: tuple[Any, str, str]) -> dict[str, int]:
    """Check arrays against named axes and return the size of each axis.

    Works on numpy arrays and torch tensors alike, and imports neither.

    Args:
        arrays: name=(array, axes, kind): axes is one letter or word per dimension, as in "N T"; the same word must
            have the same size everywhere. kind is "float", "int", "bool" or "number" (float or int).
    Returns: size of every named axis, such as {"N": 8, "T": 48}.
    Raises: ValueError if the rank or a size differs (both arrays and both shapes are printed), or the dtype is not
        of the kind asked for.

    >>> import numpy as np
    >>> check_shapes(rewards=(np.zeros((4, 2)), "N K", "float"), group=(np.arange(4), "N", "int"))
    {'N': 4, 'K': 2}
    """
    sizes: dict[str, int] = {}
    first_seen: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (array, axes, kind) in arrays.items():
        names, shape = axes.split(), tuple(array.shape)
        wanted = f"[{', '.join(names)}]"
        if len(shape) != len(names):
            others = "".join(f"; {other} has shape {other_shape}" for other, other_shape in set(first_seen.values()))
            raise ValueError(f"{name} must be {wanted}, but has shape {shape}{others}")
        for axis, size in zip(names, shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                other, other_shape = first_seen[axis]
                raise ValueError(
                    f"{name} must be {wanted}, but has shape {shape} where {other} has shape {other_shape}: "
                    f"axis {axis} is {size} against {sizes[axis]}"
                )
            first_seen.setdefault(axis, (name, shape))
        if not any(word in str(array.dtype) for word in _KINDS[kind]):
            raise ValueError(f"{name} must hold {kind} values, but its dtype is {array.dtype}")
    return sizes
