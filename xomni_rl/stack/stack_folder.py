"""What lies in a stack's folder, and errors about it in one sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from xomni_rl.weights import EMBEDDED

MODEL = "autoregressive/model.safetensors"
OTHER_PARTS = (
    "text_tokenizer/tokenizer.json",
    "vision/model.safetensors",
    "projector/projector.safetensors",
    "decoder/transformer/diffusion_pytorch_model.safetensors",
    "decoder/codec.safetensors",
)
LAYOUT = 1
"""Version of a stack folder's layout, in its `stack.json`."""


class StackError(ValueError):
    """A stack that can't be loaded, or an input that it can't take; the message says what to do."""


def read_description(folder: Path) -> dict[str, Any]:
    """What a stack folder's stack.json says. Raises: StackError if it is no stack folder, or damaged."""
    path = folder / "stack.json"
    if not folder.is_dir():
        raise StackError(
            f"no stack at {folder}: give {' or '.join(map(repr, EMBEDDED))}, the folder of a downloaded X-Omni checkpoint, or "
            "one written by `xomni-rl pretrain` (for training as model.path=FOLDER)"
        )
    if not path.exists():
        raise StackError(
            f"{folder} is no stack: it has neither a stack.json, as `xomni-rl pretrain` writes, nor the config.json of a "
            "published X-Omni checkpoint"
        )
    try:
        description = json.loads(path.read_text())
    except (json.JSONDecodeError, RecursionError) as error:
        raise StackError(f"{path} is damaged ({error}); copy the stack again") from error
    if not isinstance(description, dict) or description.get("layout") != LAYOUT:
        raise StackError(
            f"{path} has layout {description.get('layout') if isinstance(description, dict) else None}, not {LAYOUT}"
        )
    return description


@contextmanager
def other_parts(folder: Path, description: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of everything but the autoregressive model: the stack's own, or the embedded stack's if the two share it.

    Raises: StackError if a part is missing, or the stack wants to share with something else.
    """
    shares = description.get("shares")
    if shares not in (None, "embedded"):
        raise StackError(
            f"{folder / 'stack.json'}: shares is {shares!r}; a stack shares its parts with 'embedded', or has its own"
        )
    with as_file(files("xomni_rl.weights") / EMBEDDED["embedded"]) if shares else nullcontext(folder) as rest:
        places = {MODEL: folder} | dict.fromkeys(OTHER_PARTS, rest)
        missing = [part for part, place in places.items() if not (place / part).exists()]
        if missing:
            raise StackError(f"{folder} lacks {', '.join(missing)}; copy it whole, or make one with `xomni-rl pretrain`")
        yield rest


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns the libraries' errors about damaged files into one sentence; to them a list for a table is a TypeError."""
    try:
        yield
    except StackError:
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StackError(f"{folder} can't be loaded, a file is missing, damaged or of another architecture: {first}") from error


def weight_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
