"""Held-out figures of the embedded open_clip model, and the card that records them beside the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xomni_rl.prompt_sets.signs import ALPHABET, COLOURS

from .clip import ClipTrainer, to_input
from .data import SignBatch, sign_batch, stream
from .loop import Stage

NEAR_MISSES = 15
"""Prompts with one other letter that a sign's own prompt has to beat."""


@dataclass(frozen=True)
class ClipFigures:
    """Shares in [0, 1] over `count` held-out signs.

    Attributes:
        image_to_prompt: signs whose own prompt is the nearest of all `count` prompts.
        prompt_to_image: prompts whose own sign is the nearest of all.
        near_misses: signs whose prompt beats NEAR_MISSES prompts with one other letter.
        colours: signs whose prompt beats those with the seven other colours.
    """

    count: int
    image_to_prompt: float
    prompt_to_image: float
    near_misses: float
    colours: float


@torch.inference_mode()
def evaluate_clip(model: nn.Module, tokenizer: Any, count: int = 512, seed: int = 7) -> ClipFigures:
    """Measures the model on held-out signs as the prompt set draws them."""
    encoder = ClipTrainer(model, tokenizer).eval()
    batch = sign_batch(stream(seed, "clip-figures", 0), count, heldout=True)
    images = nn.functional.normalize(encoder.model.encode_image(to_input(batch.images)), dim=-1)
    similarity = images @ encoder.encode(batch.prompts()).T
    own = torch.arange(count)
    rng = np.random.default_rng(seed)
    letters = [
        [_prompt(batch, i)] + [_prompt(batch, i, text=_one_other(batch.texts[i], rng)) for _ in range(NEAR_MISSES)]
        for i in range(count)
    ]
    colours = [
        [_prompt(batch, i)] + [_prompt(batch, i, colour=name) for name in COLOURS if name != batch.colours[i]]
        for i in range(count)
    ]
    return ClipFigures(
        count=count,
        image_to_prompt=_share(similarity.argmax(1) == own),
        prompt_to_image=_share(similarity.argmax(0) == own),
        near_misses=_beats_all(encoder, images, letters),
        colours=_beats_all(encoder, images, colours),
    )


def _beats_all(encoder: ClipTrainer, images: Tensor, prompts: list[list[str]]) -> float:
    """Share of images whose first prompt is nearer than each of the others."""
    wins = [int((encoder.encode(rivals) @ image).argmax()) == 0 for image, rivals in zip(images, prompts, strict=True)]
    return float(np.mean(wins))


def _prompt(batch: SignBatch, index: int, text: str | None = None, colour: str | None = None) -> str:
    return batch.templates[index].format(text=text or batch.texts[index], colour=colour or batch.colours[index])


def _one_other(text: str, rng: np.random.Generator) -> str:
    place = int(rng.integers(len(text)))
    letters = [letter for letter in ALPHABET if letter != text[place]]
    return text[:place] + letters[int(rng.integers(len(letters)))] + text[place + 1 :]


def _share(hits: Tensor) -> float:
    return float(hits.float().mean())


def write_clip_card(path: Path, figures: ClipFigures, seed: int, stage: Stage) -> None:
    """Writes the card as Markdown."""
    shares = {name.replace("_", " "): value for name, value in asdict(figures).items() if name != "count"}
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in shares.items())
    path.write_text(
        f"""# Embedded open_clip model of signs

Made by `xomni-rl pretrain --seed {seed}`: {stage.steps} steps of {stage.batch} families of three signs (one, its twin in
another colour, its twin with one other letter). open_clip loads the folder as `local-dir:`; the reward `clip` uses it.

Measured on {figures.count} signs whose strings never occur in training:

| figure | value |
|---|---|
{rows}

image to prompt, prompt to image: the own one is the nearest of all {figures.count}; near misses: the own prompt beats
{NEAR_MISSES} with one other letter; colours: it beats those with the other seven colours.

Licence: Apache-2.0. The training images are rendered with the font inside Pillow; nothing else went in.
""",
        encoding="utf-8",
    )
