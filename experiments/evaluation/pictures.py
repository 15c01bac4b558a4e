"""The images of an evaluation: found in a folder, or drawn by a stack into one, where whole ones are not drawn again.

Each drawn file carries, as a PNG text, the hash of all that decides it: weights, sampling, size, seed, prompt and number. A
file with that hash is the image; any other file of that name is replaced. Files are written beside and renamed, so there is no
half image under a right name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.suite import Sample
from xomni_rl.prompts import Prompt
from xomni_rl.weights import EMBEDDED

if TYPE_CHECKING:
    from xomni_rl.stack.sampler import SamplingConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
KEY = "xomni-rl"
"""Name of the PNG text that holds the hash."""
BATCH = 64
"""Images drawn at a time."""


@dataclass(frozen=True)
class Drawing:
    """How images are drawn.

    Args:
        sampling: temperature, truncation, guidance.
        seed: each prompt's images have streams of their own, from (seed, prompt id, number).
        size: (height, width) px; None = the prompt's or the stack's.
        count: images per prompt.
        batch: images drawn at a time.
    """

    sampling: SamplingConfig
    seed: int = 0
    size: tuple[int, int] | None = None
    count: int = 1
    batch: int = BATCH


def is_stack(place: str) -> bool:
    """Whether a place is a stack or run, and not a folder of images."""
    folder = Path(place)
    return place in EMBEDDED or any((folder / name).exists() for name in ("checkpoints", "stack.json")) or _is_model(folder)


def _is_model(folder: Path) -> bool:
    """Whether its config.json is a model's, as transformers writes them, or too damaged to tell; a generator's own is not."""
    path = folder / "config.json"
    if not path.exists():
        return False
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return True
    return not isinstance(config, dict) or "model_type" in config or "architectures" in config


def find_images(folder: Path, samples: Sequence[Sample]) -> list[Path | None]:
    """The file of each sample, None where there is none.

    Raises: EvaluationError if it is no folder, or holds none of them.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: is neither embedded, nor a stack's, run's or images' folder; give one of them")
    found = [_first(folder, sample.names) for sample in samples]
    if not any(found):
        raise EvaluationError(
            f"{folder}: holds no stack and none of the {len(samples)} images of this suite, which are called like "
            f"{samples[0].names[0]}.png"
        )
    return found


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    files = (folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((file for file in files if file.is_file()), None)


def draw_images(
    stack: Any,
    samples: Sequence[Sample],
    folder: Path,
    drawing: Drawing,
    advance: Callable[[int], None] = lambda _: None,
    weights: Mapping[str, str] | None = None,
) -> list[Path | None]:
    """Draws what is missing, and returns every sample's file.

    Args:
        stack: of any family.
        samples: all images of a prompt stand together, as `samples_of` makes them.
        folder: made if it is not there.
        drawing: how.
        advance: told how many images are there now.
        weights: the stack's `weight_hashes`, for whom has them already; None = computed.
    Raises: StackError for sizes that the stack can't draw; OSError as it comes.
    """
    if len({sample.names[0] for sample in samples}) < len(samples):
        raise EvaluationError("several images of this suite share a file (option grid), which only folders of images can have")
    folder.mkdir(parents=True, exist_ok=True)
    groups = [list(samples[start : start + drawing.count]) for start in range(0, len(samples), drawing.count)]
    for group in groups:
        stack.grid(drawing.size or group[0].prompt.size)  # every size is checked before the first image is drawn
    weights = weights or stack.weight_hashes()
    hashes = {sample.names[0]: _hash(weights, drawing, sample) for sample in samples}
    for batch in _batches(groups, drawing):
        wanted = {sample.names[0]: folder / f"{sample.names[0]}.png" for group in batch for sample in group}
        missing = {name for name, file in wanted.items() if not _is_whole(file, hashes[name])}
        if missing:
            # The whole batch, although one image may be missing: another batch may round a pixel otherwise.
            prompts = [group[0].prompt for group in batch]
            size = drawing.size or prompts[0].size
            made = stack.generate(prompts, size=size, group_size=drawing.count, seed=drawing.seed, sampling=drawing.sampling)
            for name, image in zip(wanted, made.images, strict=True):
                if name in missing:
                    _save(image, wanted[name], hashes[name])
        advance(len(batch) * drawing.count)
    return [folder / f"{sample.names[0]}.png" for sample in samples]


def _batches(groups: Sequence[list[Sample]], drawing: Drawing) -> list[list[list[Sample]]]:
    """Neighbours of one size, as many prompts at a time as make `drawing.batch` images, but at least one."""
    batches: list[list[list[Sample]]] = []
    for group in groups:
        full = not batches or len(batches[-1]) >= max(1, drawing.batch // drawing.count)
        if full or batches[-1][-1][0].prompt.size != group[0].prompt.size:
            batches.append([])
        batches[-1].append(group)
    return batches


def _hash(weights: Mapping[str, str], drawing: Drawing, sample: Sample) -> str:
    """Of all that decides an image."""
    return digest(
        {
            "weights": dict(weights),
            "sampling": asdict(drawing.sampling),
            "size": drawing.size or sample.prompt.size,
            "seed": drawing.seed,
            "prompt": [sample.prompt.id, sample.prompt.text],
            "number": sample.number,
        }
    )


def digest(value: Any) -> str:
    """Hash of anything that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()[:32]


def prompt_digest(prompt: Prompt) -> str:
    """Hash of a prompt's fields."""
    return digest(asdict(prompt))


def _is_whole(path: Path, key: str) -> bool:
    """Whether the file is a PNG that can be read to its end and carries the hash."""
    try:
        with Image.open(path) as image:
            if image.format != "PNG" or image.info.get(KEY) != key:
                return False
            image.load()
    except (OSError, ValueError, SyntaxError):  # PIL's decoders raise SyntaxError and ValueError for damaged chunks
        return False
    return True


def _save(image: np.ndarray, path: Path, key: str) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text(KEY, key)
    beside = path.with_name(f".{path.name}.writing")  # one name, so that what a kill leaves is taken up the next time
    Image.fromarray(image).save(beside, format="PNG", pnginfo=texts)
    os.replace(beside, path)
