"""The gallery: pictures with their scores as one HTML file, or as a folder when there are many.

Prompts, file names and what a reward says are untrusted text. Jinja's autoescape, JSON with `<`, `>` and `&` escaped, a script
that only ever sets text, and a content security policy that runs only the scripts carrying this page's nonce keep them text.
"""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from xomni_rl.experiments.report.look import styles
from xomni_rl.experiments.scoring.errors import ScoringError
from xomni_rl.experiments.scoring.files import check_writable, some
from xomni_rl.experiments.scoring.matching import Item
from xomni_rl.experiments.scoring.show import interval, number
from xomni_rl.experiments.scoring.summary import Summary
from xomni_rl.experiments.scoring.table import Columns
from xomni_rl.images import NO_SAMPLES, ImageFileError, load_image

ONE_FILE = 300
"""Most images of a page that is one file."""
EMBEDDED = 768
"""Longest side of a picture inside a page, in px; larger ones are reduced."""
THUMBNAIL = 320
"""Longest side of a thumbnail of a folder, in px."""
OURS = "a gallery that xomni-rl score wrote and may replace\n"
_HERE = Path(__file__).parent
_SHOWN_AS_IT_IS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif"}


def write_gallery(
    path: Path,
    items: Sequence[Item],
    rows: Iterable[dict[str, Any]],
    columns: Columns,
    summary: Summary,
    higher_is_better: Mapping[str, bool],
) -> Path:
    """Writes the page.

    Args:
        path: of the page, as `check_gallery` takes it. Where that makes it a folder, it holds index.html, thumbnails and
            images; one that is there already is replaced once the new one is whole.
        items, rows: the images and their rows of the table, in one order.
        columns: of the table.
        summary: shown on top.
        higher_is_better: reward → direction, which is what "best first" means.
    Returns: the page.
    Raises: ScoringError if it cannot be written.
    """
    folder = _folder(path) if len(items) > ONE_FILE else None
    target = folder or path
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if folder is not None:
            _check_ours(folder)
            beside.mkdir()
            (beside / NO_SAMPLES).write_text(OURS, encoding="utf-8")
        page = beside if folder is None else beside / "index.html"
        pictures = _Embedded() if folder is None else _Files(beside)
        stream = _template().stream(
            entries=_entries(items, rows, columns, pictures),
            settings=Markup(_safe_json(_settings(items, columns, higher_is_better))),
            blocks=_blocks(summary),
            comparisons=summary.comparisons,
            problems=summary.problems,
            count=len(items),
            sources="data:" if folder is None else "'self' file: data:",
            nonce=secrets.token_urlsafe(16),
            css=styles(_HERE / "gallery.css"),
            script=Markup((_HERE / "gallery.js").read_text(encoding="utf-8")),
        )
        with page.open("w", encoding="utf-8") as file:
            file.writelines(stream)
        if folder is not None and folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, target)
    except OSError as error:
        _remove(beside)
        raise ScoringError(f"{target}: cannot be written: {error.strerror or error}; the table is whole") from error
    except BaseException:
        _remove(beside)
        raise
    return path if folder is None else folder / "index.html"


def check_gallery(path: Path, count: int, folders: Iterable[Path]) -> None:
    """Finds out before the work, not after it, that the page could not be written; makes its folder's parents.

    Args:
        path: of the page. With more than `ONE_FILE` images it becomes the folder `NAME_gallery` beside it.
        count: images.
        folders: what is scored, which a gallery must not replace.
    Raises: ScoringError if it could not.
    """
    if path.suffix.lower() != ".html":
        raise ScoringError(f"{path}: a gallery is an .html file")
    if path.is_dir():
        raise ScoringError(f"{path}: is a folder; give another name with --gallery")
    if count > ONE_FILE:
        target = _folder(path)
        _check_ours(target)
        for folder in folders:
            if folder.resolve().is_relative_to(target.resolve()):
                raise ScoringError(f"{target}: the gallery would replace the images in {folder}; give another --gallery")
    check_writable(path)


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.stem}_gallery")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number}
    environment.globals |= {"interval": interval}
    return environment.get_template("gallery.html")


def _settings(items: Sequence[Item], columns: Columns, higher_is_better: Mapping[str, bool]) -> dict[str, Any]:
    """What the page's script must know beside the entries."""
    scores = [
        {"name": column, "reward": reward, "up": higher_is_better[reward], "main": column == reward}
        for reward, found in columns.figures.items()
        for column in found
    ]
    return {"scores": scores, "models": list(dict.fromkeys(item.model for item in items))}


def _entries(
    items: Sequence[Item], rows: Iterable[dict[str, Any]], columns: Columns, pictures: _Embedded | _Files
) -> Iterator[Markup]:
    """Each image as JSON: m model, id, k sample, p prompt, t texts, f file, s scores, d details, e error, src, thumb, size."""
    figures = [column for found in columns.figures.values() for column in found]
    details = [column for column in columns.details if column not in figures]
    for index, (item, row) in enumerate(zip(items, rows, strict=True)):
        entry = {"m": item.model, "id": item.prompt.id, "k": item.sample, "p": item.prompt.text, "f": item.name}
        entry |= {"t": list(item.prompt.texts), "s": [row[column] for column in figures], "e": row["error"]}
        entry["d"] = {column: row[column] for column in details if row[column] is not None}
        entry |= pictures.of(index, Path(item.path))
        yield Markup(("" if index == 0 else ",\n") + _safe_json(entry))


@dataclass(frozen=True)
class _Embedded:
    """Pictures inside the page."""

    def of(self, index: int, path: Path) -> dict[str, str]:
        try:
            pixels = load_image(path)
        except (ImageFileError, OSError):
            return {}
        height, width = pixels.shape[:2]
        kind = _SHOWN_AS_IT_IS.get(path.suffix.lower())
        if kind is not None and max(height, width) <= EMBEDDED:
            return {"src": _data_uri(kind, path.read_bytes()), "size": f"{width} × {height}"}
        picture = Image.fromarray(pixels)
        picture.thumbnail((EMBEDDED, EMBEDDED))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=88)
        return {"src": _data_uri("jpeg", buffer.getvalue()), "size": f"{width} × {height}"}


@dataclass(frozen=True)
class _Files:
    """Pictures in folders beside the page, a thousand in each."""

    folder: Path

    def of(self, index: int, path: Path) -> dict[str, str]:
        try:
            pixels = load_image(path)
        except (ImageFileError, OSError):
            return {}
        suffix = path.suffix.lower()
        place = f"{index // 1000:03d}/{index:07d}"
        full = f"images/{place}{suffix if suffix in _SHOWN_AS_IT_IS else '.png'}"
        for name in (full, f"thumbnails/{place}"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        if suffix in _SHOWN_AS_IT_IS:
            shutil.copyfile(path, self.folder / full)
        else:
            Image.fromarray(pixels).save(self.folder / full)
        height, width = pixels.shape[:2]
        found = {"src": full, "size": f"{width} × {height}"}
        if max(height, width) > THUMBNAIL:
            thumbnail = Image.fromarray(pixels)
            thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
            thumbnail.save(self.folder / f"thumbnails/{place}.jpg", quality=85)
            found["thumb"] = f"thumbnails/{place}.jpg"
        return found


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _safe_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _blocks(summary: Summary) -> list[dict[str, Any]]:
    """One per column of numbers: its name and a row per model, histogram heights in percent of the highest."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for (model, column), row in summary.rewards.items():
        most = max(row.histogram, default=0)
        heights = [round(100 * count / most) for count in row.histogram] if most else []
        blocks.setdefault(column, []).append({"model": model, "row": row, "heights": heights})
    return [{"name": name, "rows": rows} for name, rows in blocks.items()]


def _check_ours(folder: Path) -> None:
    """Raises ScoringError for what is no gallery, or has something in it that is none of ours: it would be replaced."""
    if not folder.exists():
        return
    mark = folder / NO_SAMPLES
    if not mark.is_file() or mark.read_text(encoding="utf-8", errors="replace") != OURS:
        raise ScoringError(f"{folder}: is there already and is no gallery; give another name with --gallery")
    others = sorted({path.name for path in folder.iterdir()} - {NO_SAMPLES, "index.html", "images", "thumbnails"})
    if others:
        raise ScoringError(
            f"{folder}: the gallery there would be replaced, and with it {some(others)}; move that away, or give another name"
            " with --gallery"
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
