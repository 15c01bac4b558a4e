"""What the tests of losses share: random batches, and means over tokens in plain Python."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def random_batch(
    seed: int, rows: int = 4, tokens: int = 5, spread: float = 0.4
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logprobs, old_logprobs, advantages [N, T], mask, reference in float64; every row has a counted token."""
    draw = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(rows, tokens, generator=draw, dtype=torch.float64)

    old = -3 * torch.rand(rows, tokens, generator=draw, dtype=torch.float64) - 0.1
    mask = torch.rand(rows, tokens, generator=draw) < 0.7
    mask[:, 0] = True
    return old + spread * normal(), old, normal(), mask, old + 0.3 * normal()


def plain_mean(losses: list[list[float]], mask: list[list[bool]], aggregation: str) -> float:
    """`aggregate`, spelt out; every row has a counted token."""
    rows = [[loss for loss, counts in zip(*row, strict=True) if counts] for row in zip(losses, mask, strict=True)]
    if aggregation == "sequence_mean":
        return sum(sum(row) / len(row) for row in rows) / len(rows)
    divisor = len(rows) * len(mask[0]) if aggregation == "constant_length" else sum(len(row) for row in rows)
    return sum(sum(row) for row in rows) / divisor


@pytest.fixture(scope="session")
def batch() -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    return random_batch


@pytest.fixture(scope="session")
def mean_of() -> Callable[[list[list[float]], list[list[bool]], str], float]:
    return plain_mean
