"""Parity with the public implementation: compares what our classes compute with fixtures that it wrote.

A fixture folder has the sub-folders `autoregressive` (config.json, model.safetensors, expected.safetensors) and
`image_tokenizer` (config.json, projector.safetensors, expected.safetensors); each is optional.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .autoregressive import XOmniForCausalLM
from .image_tokenizer import VQProjector
from .sampler import IncrementalSampler
from .stack import StackError

LIMIT = 1e-4


@dataclass(frozen=True)
class GoldenRow:
    """One comparison.

    Attributes:
        name: what was compared.
        kind: "difference" (largest absolute one) or "mismatches" (a count).
        value: the figure.
        limit: the most that passes.
    """

    name: str
    kind: Literal["difference", "mismatches"]
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.value <= self.limit


def compare_golden(folder: str | Path) -> list[GoldenRow]:
    """Compares every part that the folder has.

    Raises: StackError if the folder holds neither part, or a file is missing or damaged.
    """
    folder = Path(folder)
    parts = {"autoregressive": compare_autoregressive, "image_tokenizer": compare_image_tokenizer}
    present = [name for name in parts if (folder / name).is_dir()]
    if not present:
        raise StackError(f"{folder} has neither a sub-folder 'autoregressive' nor 'image_tokenizer'")
    rows = []
    for name in present:
        with _explained(folder / name):
            rows += parts[name](folder / name)
    return rows


@torch.no_grad()
def compare_autoregressive(folder: Path) -> list[GoldenRow]:
    """Text logits, image logits (where the mask is 1), and greedy image tokens after the first ids of row 0."""
    expected = load_file(folder / "expected.safetensors")
    model, loading = XOmniForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    unfit = sorted({*loading["missing_keys"], *loading["unexpected_keys"]})
    if unfit:
        raise StackError(f"{folder / 'model.safetensors'}: tensors missing or left over: {', '.join(unfit[:4])}")
    model.eval()
    ids, mask = expected["input_ids"], expected["attention_mask"]
    rows = []
    for modality in ("text", "image"):
        logits = model(ids, mask, expected["position_ids"], modality=modality).logits
        reference = expected[f"logits_{modality}"]
        rows.append(_difference(f"{modality} logits", logits, reference, mask.bool()))
    greedy = greedy_image_tokens(model, ids[:1, :9], len(expected["greedy"]))
    rows.append(_mismatches("greedy tokens", greedy + model.config.vocab_size, expected["greedy"]))
    return rows


def greedy_image_tokens(model: XOmniForCausalLM, input_ids: Tensor, count: int) -> Tensor:
    """The `count` likeliest image tokens, one after another, through the sampler's own forward pass.

    Args:
        input_ids: [1, L] int64.
    Returns: [count] int64 in [0, image_vocab_size).
    """
    sampler = IncrementalSampler(model, input_ids, torch.ones_like(input_ids), count)
    chosen = []
    for _ in range(count):
        chosen.append(sampler.logits().argmax(-1))
        sampler.append(chosen[-1])
    return torch.cat(chosen)


@torch.no_grad()
def compare_image_tokenizer(folder: Path) -> list[GoldenRow]:
    """Token ids of features, and features decoded from token ids."""
    expected = load_file(folder / "expected.safetensors")
    height, width = json.loads((folder / "config.json").read_text())["grid"]
    projector = VQProjector.from_pretrained(folder)
    return [
        _mismatches("token ids", projector.encode(expected["features"], (height, width)), expected["tokens"]),
        _difference("decoded features", projector.decode(expected["tokens"]), expected["decoded"]),
    ]


def _difference(name: str, ours: Tensor, reference: Tensor, mask: Tensor | None = None) -> GoldenRow:
    _same_shape(name, ours, reference)
    delta = (ours.double() - reference.double()).abs()
    value = float((delta if mask is None else delta[mask]).max())
    return GoldenRow(name, "difference", value if value == value else float("inf"), LIMIT)


def _mismatches(name: str, ours: Tensor, reference: Tensor) -> GoldenRow:
    _same_shape(name, ours, reference)
    return GoldenRow(name, "mismatches", float((ours != reference).sum()), 0)


def _same_shape(name: str, ours: Tensor, reference: Tensor) -> None:
    if ours.shape != reference.shape:
        raise StackError(f"{name}: we compute {tuple(ours.shape)}, the fixture has {tuple(reference.shape)}")


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except StackError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise StackError(f"{folder} can't be compared, a file is missing or damaged: {error}") from error
