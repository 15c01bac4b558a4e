"""Ways in which a file of tensors can be wrong, for every test of something that reads one."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

Header = dict[str, Any]


def parts(data: bytes) -> tuple[Header, bytes]:
    """Header and tensors of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    header: Header = json.loads(data[8 : 8 + length])
    return header, data[8 + length :]


def joined(header: Header, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What is wrong → the file: cut off, a header that lies, and tensors that are not those that were asked for."""
    header, tensors = parts(data)
    end = len(data) - len(tensors)
    for kept in (0, 4, 8, end // 2, end, end + 1, len(data) - 1):
        yield f"cut off at {kept}", data[:kept]
    for length in (0, 1, len(data), 10**8 + 1, 2**63, 2**64 - 1):
        yield f"a header of {length} bytes", struct.pack("<Q", length) + data[8:]
    yield "no JSON", data[:8] + b"\xff" * (end - 8) + tensors
    deep = b"[" * 100_000
    yield "a deep header", struct.pack("<Q", len(deep)) + deep
    yield "a list", joined([], tensors)  # type: ignore[arg-type]
    yield "more than the header says", data + b"\0" * 8
    yield "another kind of file", b"PK\x03\x04" + data[4:]
    name = next(name for name in header if name != "__metadata__" and header[name]["dtype"] == "F32" and header[name]["shape"])
    for what, change in _changes():
        changed = json.loads(json.dumps(header))
        change(changed, name)
        yield what, joined(changed, tensors)


def _changes() -> Iterator[tuple[str, Callable[[Header, str], None]]]:
    def rename(header: Header, name: str) -> None:
        header["another"] = header.pop(name)

    def kind(dtype: str) -> Callable[[Header, str], None]:
        def change(header: Header, name: str) -> None:
            header[name]["dtype"] = dtype

        return change

    def shape(value: Any) -> Callable[[Header, str], None]:
        def change(header: Header, name: str) -> None:
            header[name]["shape"] = value

        return change

    def flat(header: Header, name: str) -> None:
        count = 1
        for side in header[name]["shape"]:
            count *= side
        header[name]["shape"] = [1, count, 1]

    def outside(header: Header, name: str) -> None:
        start, stop = header[name]["data_offsets"]
        header[name]["data_offsets"] = [start + 2**40, stop + 2**40]

    yield "a tensor of another name", rename
    yield "whole numbers instead of floating point", kind("I32")
    yield "an unknown type", kind("F31")
    yield "a type of another width", kind("F64")
    yield "another shape", flat
    yield "a huge shape", shape([2**40, 2**40])
    yield "a negative shape", shape([-1])
    yield "a shape that is a word", shape("wide")
    yield "offsets outside of the file", outside
