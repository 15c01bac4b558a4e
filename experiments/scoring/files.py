"""Image files of a folder, in natural order."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from xomni_rl.experiments.scoring.errors import ScoringError
from xomni_rl.images import NO_SAMPLES

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SHOWN = 8


def image_files(folder: Path, recursive: bool | None = None) -> list[str]:
    """Names of the files with an image's suffix, relative to the folder, in natural order.

    Hidden ones are left out, and so are folders inside that hold contact sheets or galleries (`NO_SAMPLES`).

    Args:
        folder: where they lie.
        recursive: whether folders inside are looked through; None = only if no image lies in the folder itself.
    Raises: ScoringError if it is no folder, cannot be read or has none.
    """
    if not folder.is_dir():
        raise ScoringError(f"{folder}: is no folder of images")
    names = [] if recursive else list(_names(folder, deep=False))
    if not names and recursive is not False:
        names = list(_names(folder, deep=True))
    if not names:
        raise ScoringError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(names, key=natural)


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts digits by their value, then by name, so that 2.png comes before 10.png and 02.png keeps a fixed place."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], name


def check_writable(path: Path) -> None:
    """Makes a file's folder, and finds out before the work, not after it, that the file could not be written.

    Raises: ScoringError if it could not.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise ScoringError(f"{path}: cannot be written: {error.strerror or error}") from error


def counted(number: int, noun: str) -> str:
    """As one says it: 1 image, 2 images."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _names(folder: Path, deep: bool) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, onerror=_cannot_be_read):
        folders[:] = [name for name in folders if deep and not name.startswith(".")]
        inside = Path(parent).relative_to(folder)
        if inside.parts and NO_SAMPLES in files:
            folders.clear()
            continue
        for name in files:
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield (inside / name).as_posix()


def _cannot_be_read(error: OSError) -> NoReturn:
    raise ScoringError(f"{error.filename}: cannot be read: {error.strerror}") from error
