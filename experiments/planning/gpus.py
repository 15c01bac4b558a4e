"""Named GPUs: memory, arithmetic, bandwidth, as their makers state them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xomni_rl.registry import unknown_name

GIB = 2**30
USABLE = 0.985
"""Share of a card's nominal memory that CUDA reports as there."""
SAME_SIZE = {24: "RTX4090", 40: "A100-40GB", 48: "L40S", 80: "A100-80GB", 141: "H200", 180: "B200"}
"""Whose speed counts for a card that is known by its memory in GB alone: the slower ones of that size."""


class GpuError(ValueError):
    """A kind or number of GPUs that cannot be read."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: as in `gpus=8xNAME`.
        memory: GB as sold, of 2^30 bytes.
        tensor: FLOP/s of dense bfloat16 matrix products with float32 sums.
        plain: FLOP/s of float32 arithmetic.
        bandwidth: bytes/s of its memory.
        link: bytes/s to the other GPUs of its machine, in one direction.
    Source: the makers' data sheets; what they state with sparsity is halved.
    """

    name: str
    memory: float
    tensor: float
    plain: float
    bandwidth: float
    link: float

    @property
    def usable(self) -> int:
        """Bytes that a process can have."""
        return int(self.memory * USABLE * GIB)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("RTX4090", 24, 165e12, 82.6e12, 1008e9, 32e9),
        Gpu("L40S", 48, 362e12, 91.6e12, 864e9, 32e9),
        Gpu("A100-40GB", 40, 312e12, 19.5e12, 1555e9, 300e9),
        Gpu("A100-80GB", 80, 312e12, 19.5e12, 2039e9, 300e9),
        Gpu("H100-80GB", 80, 989e12, 67e12, 3350e9, 450e9),
        Gpu("H200", 141, 989e12, 67e12, 4800e9, 450e9),
        Gpu("B200", 180, 2250e12, 75e12, 7700e9, 900e9),
    )
}
SHORT = {"A100": "A100-80GB", "H100": "H100-80GB", "4090": "RTX4090"}


def parse_gpus(text: str) -> tuple[int, Gpu]:
    """How many GPUs of which kind "8x80GB", "8xH100" or "RTX4090" is.

    Raises: GpuError for something else.

    >>> parse_gpus("8xh100")[1].name
    'H100-80GB'
    """
    found = re.fullmatch(r"(?:(\d+)\s*[x×])?\s*(\S+)", text.strip(), re.IGNORECASE)
    if not found or int(found.group(1) or 1) < 1:
        raise GpuError(f"gpus must read like 8x80GB or 8xH100, not {text!r}")
    count, kind = int(found.group(1) or 1), found.group(2).upper()
    if size := re.fullmatch(r"(\d+)(?:GB|GIB)?", kind):
        memory = int(size.group(1))
        if kind not in SHORT:
            return count, _by_memory(memory)
    kind = SHORT.get(kind, kind)
    if kind not in GPUS:
        raise GpuError(unknown_name("kind of GPU", found.group(2), [*GPUS, *SHORT]))
    return count, GPUS[kind]


def _by_memory(memory: int) -> Gpu:
    """A card of so many GB, as fast as the nearest one that is not larger (or the smallest)."""
    if memory < 1:
        raise GpuError("a GPU must have at least 1 GB")
    smaller = [size for size in SAME_SIZE if size <= memory] or [min(SAME_SIZE)]
    like = GPUS[SAME_SIZE[max(smaller)]]
    return Gpu(f"{memory}GB", memory, like.tensor, like.plain, like.bandwidth, like.link)
