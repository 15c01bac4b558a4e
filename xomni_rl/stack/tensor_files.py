"""Tensors of published folders: safetensors in one file or in shards, and what they hold without reading them.

A file that PyTorch pickled is read by its restricted unpickler, which knows tensors and plain containers and runs no code.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]
Entry = tuple[str, tuple[int, ...]]
"""Type and shape of a tensor, as a file's header says them."""
FLOATING = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
"""Bytes of a number, by safetensors' name of its type."""
WHOLE = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
LARGEST_HEADER = 100_000_000
"""Bytes; a header that claims more is damage (safetensors' own limit)."""
PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def shards(folder: Path) -> list[Path]:
    """The safetensors of a folder: those that its index names, else all.

    Raises: FileNotFoundError if there are none, or one that the index names is not there; ValueError for a damaged index.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        try:
            names = sorted(set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / Path(name).name for name in names]  # of this folder, whatever path is named
        except (ValueError, RecursionError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{indices[0]} is damaged: copy it again") from error
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing) or 'safetensors'}")
    return files


def check_fits(
    path: Path, module: nn.Module, besides: str = "", renamed: Callable[[dict[str, Entry]], dict[str, Entry]] = dict
) -> None:
    """Compares a file, or a folder's shards, with a module, name by name.

    Libraries would fill in what is missing with random numbers, and read whole numbers as weights.

    Args:
        path: a file or a folder.
        module: may lie on the meta device.
        besides: tensors whose names hold this word may be there besides.
        renamed: names of the file → names of the module.
    Raises: ValueError naming the first tensors that do not fit, or a damaged file; OSError if one cannot be read.
    """
    own = module.state_dict()
    files = shards(path) if path.is_dir() else [path]
    where = files[0] if len(files) == 1 else path
    entries = renamed(read_entries(path))
    found = {name: shape for name, (_, shape) in entries.items() if name in own or not besides or besides not in name}
    compare_shapes(found, {name: tuple(tensor.shape) for name, tensor in own.items()}, where)
    floating = (name for name, tensor in own.items() if tensor.is_floating_point())
    refuse_whole_numbers([name for name in floating if entries[name][0] not in FLOATING], where)


def compare_shapes(found: Shapes, wanted: Shapes, where: str | Path) -> None:
    """Raises: ValueError naming the first tensors that are missing, left over or of another shape."""
    wrong = [f"{name} missing" for name in wanted.keys() - found.keys()]
    wrong += [f"{name} left over" for name in found.keys() - wanted.keys()]
    both = wanted.keys() & found.keys()
    wrong += [f"{name} is {found[name]}, not {wanted[name]}" for name in both if found[name] != wanted[name]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        listed = "; ".join(sorted(wrong)[:3])
        raise ValueError(f"{where} doesn't fit its configuration: {listed}{more}; copy it again, with its configuration")


def refuse_whole_numbers(names: Sequence[str], where: str | Path) -> None:
    """Raises: ValueError if there are any."""
    if names:
        raise ValueError(f"{where} is damaged: {names[0]} holds whole numbers, and no weights; copy it again")


def _entries(path: Path) -> dict[str, Entry]:
    """Name → dtype and shape, of a file whose header agrees with its size."""
    with path.open("rb") as file:
        size = path.stat().st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
        if length > min(LARGEST_HEADER, size - 8):
            raise ValueError(f"{path} is damaged or cut off: copy it again")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            entries = {name: _entry(entry) for name, entry in header.items()}
        except (RecursionError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: its header is no list of tensors; copy it again") from error
    if 8 + length + end != size:
        raise ValueError(
            f"{path} is damaged or cut off: {8 + length + end} bytes are announced, {size} are there; copy it again"
        )
    return entries


def _entry(entry: Mapping[str, Any]) -> Entry:
    """Of one tensor in a header. Raises: ValueError if type and shape don't take as many bytes as are set aside, and others."""
    kind, shape = str(entry["dtype"]), tuple(int(side) for side in entry["shape"])
    start, stop = entry["data_offsets"]
    if min(shape, default=0) < 0 or stop - start != math.prod(shape) * (FLOATING | WHOLE)[kind]:
        raise ValueError(f"{kind} {shape} in {stop - start} bytes")
    return kind, shape


def read_entries(path: Path) -> dict[str, Entry]:
    """Names, types and shapes of all tensors of a folder or a file; only headers are read.

    Raises: ValueError if a file is damaged or cut off; OSError if one is missing or cannot be read.
    """
    return {name: each for file in (shards(path) if path.is_dir() else [path]) for name, each in _entries(file).items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a folder, or of one file.

    Args:
        path: a folder with safetensors; a safetensors file; or one that PyTorch pickled, whose tensors may lie under
            "state_dict" or "model".
    Raises: OSError for a missing file; ValueError for a damaged one, or one that holds anything but tensors.
    """
    if path.is_dir():
        return {name: tensor for file in shards(path) for name, tensor in read_tensors(file).items()}
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix in PICKLED:
        return _read_pickled(path)
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut off ({error}): copy it again") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's, the archive's and torch's errors share no class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is damaged, or holds more than tensors: {reason}") from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no table of tensors")
    return {str(name): value for name, value in found.items()}
