"""`xomni-rl generate`: images from prompts, from the shell."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from xomni_rl.config import ConfigError
from xomni_rl.registry import unknown_name

if TYPE_CHECKING:
    import numpy as np

    from xomni_rl.prompts import Prompt
    from xomni_rl.stack.sampler import SamplingConfig
    from xomni_rl.stack.stack import Stack

Drawn = list[tuple["Prompt", "np.ndarray"]]
StackOption = Annotated[
    str, typer.Option(help="'embedded', 'embedded_long', a stack's or model's folder, or a run folder (its best checkpoint).")
]
FluxOption = Annotated[
    Path | None, typer.Option(help="FLUX.1-dev's folder, for a published X-Omni checkpoint.", show_default=False)
]
DtypeOption = Annotated[
    str, typer.Option(help="float32, bfloat16 or float16; auto = bfloat16 for a published checkpoint on a GPU.")
]
DTYPES = ("auto", "float32", "bfloat16", "float16")
BATCH = 64
"""Images generated at a time."""
SHEET_LIMIT = 256
"""Images on a contact sheet at most."""


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT…", help="What to draw.", show_default=False)] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", help="A .jsonl or .txt file of further prompts.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("pictures"),
    stack: StackOption = "embedded",
    count: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, prompt and number: same image.")] = 0,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Height x width, px; default: the stack's.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="Above 0; less = more certain tokens.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Only the k likeliest tokens; 0 = all.")] = 0,
    top_p: Annotated[float, typer.Option(max=1.0, help="Only the likeliest tokens that make up this share.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Only tokens this likely against the likeliest.")] = 0.0,
    cfg_scale: Annotated[float, typer.Option(min=0.0, help="Classifier-free guidance; 1 = none.")] = 1.0,
    best_of: Annotated[int, typer.Option(min=1, help="Draw so many for each image and keep what --reward likes best.")] = 1,
    reward: Annotated[str, typer.Option(help="For --best-of: as in xomni-rl train.")] = "ocr",
    preview: Annotated[
        int, typer.Option(min=0, help="Every so many tokens, write what is drawn so far to contact_sheet/preview.png.")
    ] = 0,
    flux: FluxOption = None,
    dtype: DtypeOption = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Sample with a compiled step, for GPUs: the first batch takes longer."),
    ] = False,
) -> None:
    """Draw images from prompts.

    Writes one PNG per image, prompts.jsonl (which `score` reads back) and contact_sheet/grid.png.

    Examples:

    • xomni-rl generate 'a red sign that says "K7AX"' --count 8 --out pictures

    • xomni-rl generate --prompts prompts.jsonl --stack runs/seed1 --temperature 0.8

    • xomni-rl generate 'a red sign that says "K7AX"' --best-of 8 --reward ocr

    • xomni-rl generate 'a street in spring' --stack X-Omni-En --flux FLUX.1-dev --size 1152x1152 --min-p 0.03 --preview 512

    • xomni-rl score pictures --reward ocr
    """
    if preview and best_of > 1:
        raise ConfigError("--preview shows images as they are drawn, --best-of keeps some of them at the end: choose one")
    requested = _requested(prompts or [], prompts_file)
    pixels = parse_size(size)
    names = file_names([prompt.id for prompt in requested], count)
    _check_folder(out, names)
    from xomni_rl.stack.sampler import SamplingConfig

    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, cfg_scale=cfg_scale)
    drawn: Drawn = []
    from xomni_rl.images import NO_SAMPLES

    refuse_idle_flux(stack, flux)
    loaded = load_stack(stack, device, flux, dtype)
    if compiled:
        from xomni_rl.stack.static import compile_sampling

        compile_sampling(loaded.model)
    for prompt in requested:  # every prompt and size is checked before the first image is drawn
        loaded.encode_prompts([prompt.text], pixels or prompt.size)
    out.mkdir(parents=True, exist_ok=True)
    sheet = out / "contact_sheet" / "grid.png"
    sheet.parent.mkdir(exist_ok=True)
    (sheet.parent / NO_SAMPLES).touch()
    show = partial(_save_preview, sheet.with_name("preview.png"), count)
    images = partial(_images, preview, show) if best_of == 1 else partial(_best_images, best_of, reward)
    for prompt, image in images(loaded, requested, pixels, count, seed, sampling):
        name = names[len(drawn)]
        _save_png(image, out / f"{name}.png")
        drawn.append((replace(prompt, id=name), image))
    write_prompts([prompt for prompt, _ in drawn], out / "prompts.jsonl")
    _save_png(contact_sheet([image for _, image in drawn[:SHEET_LIMIT]], count), sheet)
    typer.echo(f"{len(drawn)} image{'s' * (len(drawn) > 1)} in {out}, prompts in {out / 'prompts.jsonl'}, all on {sheet}")


def load_stack(source: str, device: str = "auto", flux: Path | None = None, dtype: str = "auto") -> Any:
    """The embedded stack, that of a folder of any family, or that of a run folder with its best (or else last) checkpoint.

    Args:
        source: "embedded" or the folder.
        device: auto = the GPU if there is one.
        flux: FLUX.1-dev's folder, for a published checkpoint.
        dtype: auto = bfloat16 for a published checkpoint on a GPU, else float32.
    Raises: ConfigError for an unknown dtype; StackError for a device that is not here, and what loading raises.
    """
    import torch

    from xomni_rl.stack.checkpoint import is_published
    from xomni_rl.stack.devices import usable_device
    from xomni_rl.stack.stack import Stack

    place, folder = usable_device(device, "--device"), Path(source)
    if source != "embedded" and (folder / "checkpoints").is_dir():
        from xomni_rl.experiments.run import trained_stack

        which = "best" if (folder / "checkpoints" / "best").exists() else "last"
        return trained_stack(folder, which, place)
    if dtype not in DTYPES:
        raise ConfigError(unknown_name("--dtype", dtype, DTYPES))
    if dtype == "auto":
        dtype = "bfloat16" if is_published(folder) and place.type != "cpu" else "float32"
    if (family := family_of(folder)) != "xomni":
        from xomni_rl.stack.family import families

        return families.get(family).from_pretrained(folder, place, getattr(torch, dtype))
    return Stack.from_pretrained(source, place, getattr(torch, dtype), flux=flux)


def refuse_idle_flux(source: str, flux: Path | None) -> None:
    """Raises: ConfigError for a FLUX.1 folder given beside a stack that takes none; of several stacks one may need it."""
    from xomni_rl.stack.checkpoint import is_published
    from xomni_rl.weights import EMBEDDED

    if flux is None or is_published(Path(source)):
        return
    if source in EMBEDDED or Path(source).is_dir():
        raise ConfigError(f"--flux is for a published X-Omni checkpoint, and {source} is none: leave it out")


def family_of(folder: Path) -> str:
    """The family of a model's folder: what its config.json says, if a family is called so, else "xomni"."""
    from xomni_rl.stack.family import families

    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return "xomni"
    return kind if kind in families.names() else "xomni"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "32x96" as (32, 96), (height, width) px. Raises: ConfigError for another form."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+)\s*[x×X]\s*(\d+)\s*", text)
    if found is None:
        raise ConfigError(f"--size must be height x width in pixels, such as 32x96, but is {text!r}")
    return int(found.group(1)), int(found.group(2))


def file_names(ids: Sequence[str], count: int) -> list[str]:
    """Names without suffix for `count` images of each prompt, prompt by prompt, usable on any file system.

    >>> file_names(["0000", "a/b"], 2)
    ['0000_1', '0000_2', 'a-b_1', 'a-b_2']
    """
    safe = [re.sub(r"[^\w.-]+", "-", each).lstrip(".")[:100] for each in ids]
    if "" in safe or len({each.casefold() for each in safe}) < len(safe):
        safe = [f"{position:04d}" for position in range(len(ids))]
    return [each if count == 1 else f"{each}_{number}" for each in safe for number in range(1, count + 1)]


def write_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    """One JSON line per prompt with the fields that are set, as `load_prompts` reads them."""
    lines = []
    for prompt in prompts:
        record = {entry.name: getattr(prompt, entry.name) for entry in fields(prompt)}
        lines.append(
            json.dumps({key: value for key, value in record.items() if value or key in ("id", "text")}, ensure_ascii=False)
        )
    with _replaced(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def contact_sheet(images: Sequence[np.ndarray], columns: int = 1, gap: int = 4) -> np.ndarray:
    """All images on one white page: uint8 [H, W, 3] each -> uint8 [H', W', 3].

    Args:
        images: of any sizes; every cell is as large as the largest.
        columns: 1 = as many as make the page about square; else a row per prompt.
        gap: white pixels between cells.
    """
    import numpy as np

    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    if columns == 1:
        columns = max(1, min(len(images), round((len(images) * height / width) ** 0.5)))
    rows = -(-len(images) // columns)
    page = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        page[top : top + image.shape[0], left : left + image.shape[1]] = image
    return page


def _requested(texts: Sequence[str], path: Path | None) -> list[Prompt]:
    from xomni_rl.prompts import Prompt, load_prompts

    given = [Prompt(id=f"{position:04d}", text=text) for position, text in enumerate(texts)]
    if path is not None:
        read = load_prompts(path)
        given += [replace(p, id=f"{path.stem}-{p.id}") for p in read] if given else read
    if not given:
        raise ConfigError("no prompt: give one or more in quotes, or --prompts FILE")
    return given


def _images(
    preview: int,
    show: Callable[[Sequence[np.ndarray]], None],
    stack: Stack,
    prompts: Sequence[Prompt],
    size: tuple[int, int] | None,
    count: int,
    seed: int,
    sampling: SamplingConfig,
) -> Iterator[tuple[Prompt, np.ndarray]]:
    """(prompt, image), prompt by prompt; pictures of what is there so far go to `show` every `preview` tokens."""
    from rich.console import Console
    from rich.progress import Progress

    from xomni_rl.commands.preview import LEAST_TOKENS, Drawing

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        images = progress.add_task("images", total=len(prompts) * count)
        for batch in _batches(prompts, BATCH // count):
            repeated = [prompt for prompt in batch for _ in range(count)]
            sizes = [size or prompt.size for prompt in repeated]
            total = sum(math.prod(stack.grid(each)) for each in set(sizes))  # one size after the other
            task = progress.add_task("tokens", total=total, visible=total >= LEAST_TOKENS)
            advance = partial(progress.advance, task)
            drawing = Drawing(stack, sizes, [prompt.text for prompt in repeated], preview, advance, show)
            made = stack.generate(batch, size=size, group_size=count, seed=seed, sampling=sampling, on_tokens=drawing)
            progress.remove_task(task)
            progress.advance(images, len(repeated))
            yield from zip(repeated, made.images, strict=True)


def _best_images(
    best_of: int,
    reward: str,
    stack: Stack,
    prompts: Sequence[Prompt],
    size: tuple[int, int] | None,
    count: int,
    seed: int,
    sampling: SamplingConfig,
) -> Iterator[tuple[Prompt, np.ndarray]]:
    """(prompt, image), prompt by prompt, each image the best of `best_of` by a reward."""
    from rich.console import Console
    from rich.progress import track

    from xomni_rl.config import reward_config
    from xomni_rl.policies.best_of_n import best_images
    from xomni_rl.rewards.composite import build_composite

    judge, console = build_composite(reward_config(reward)), Console(stderr=True)
    batches = _batches(prompts, BATCH // (count * best_of))
    for batch in track(batches, "drawing", console=console, transient=True, disable=not console.is_terminal):
        repeated = [prompt for prompt in batch for _ in range(count)]
        found = best_images(stack, repeated, judge, best_of, seed=seed, sampling=sampling, size=size)
        yield from zip(repeated, found.images, strict=True)


def _batches(prompts: Sequence[Prompt], per_batch: int) -> list[list[Prompt]]:
    """At most `per_batch` (but at least one) at a time."""
    step = max(1, per_batch)
    return [list(prompts[start : start + step]) for start in range(0, len(prompts), step)]


def _check_folder(out: Path, names: Sequence[str]) -> None:
    """Raises ConfigError if the folder holds images that are not about to be replaced: they would be scored along."""
    if out.is_dir():
        others = sorted(path.name for path in out.glob("*.png") if path.stem not in set(names))
        if others:
            raise ConfigError(f"{out} holds other images already, such as {others[0]}; give another --out, or empty it")


def _save_preview(path: Path, columns: int, images: Sequence[np.ndarray]) -> None:
    _save_png(contact_sheet(list(images[:SHEET_LIMIT]), columns), path)


def _save_png(image: np.ndarray, path: Path) -> None:
    from PIL import Image

    with _replaced(path) as file:
        Image.fromarray(image).save(file, format="PNG")


@contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A file written beside `path` and renamed over it at the end; nothing is left behind if that fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
