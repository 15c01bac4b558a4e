"""Held-out figures of a stack of the sign domain, and the card that records them beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from xomni_rl.prompt_sets.signs import sign_prompt
from xomni_rl.rewards.base import build_reward
from xomni_rl.stack.stack import Stack

from .autoregressive import COLOUR, READ
from .data import SignBatch, sign_batch, stream
from .loop import Stage

CHUNK = 64


@dataclass(frozen=True)
class Figures:
    """Shares in [0, 1] over `count` held-out signs; `codes_used` counts codebook entries.

    Attributes:
        rendered: OCR exact match of the rendered signs themselves: the ceiling.
        reconstruction: the same after image tokenizer and decoder.
        generation: OCR exact match of signs generated from prompts.
        generation_characters: their mean character accuracy.
        reading: exact match of the model's own reading of tokenised signs.
        colour: the same for their colour.
    """

    count: int
    rendered: float
    reconstruction: float
    generation: float
    generation_characters: float
    reading: float
    colour: float
    codes_used: int


def evaluate_stack(stack: Stack, count: int = 512, seed: int = 7, console: Console | None = None) -> Figures:
    """Measures a stack on held-out signs, sampling at temperature 1 without guidance."""
    console = console or Console()
    reader = build_reward("ocr", metric="exact", layout="line")
    totals: dict[str, list[float]] = {}
    codes: set[int] = set()
    with console.status(f"measuring on {count} held-out signs"):
        for start in range(0, count, CHUNK):
            batch = sign_batch(stream(seed, "figures", start), min(CHUNK, count - start), heldout=True)
            for name, values in _chunk(stack, batch, reader, codes, start).items():
                totals.setdefault(name, []).extend(values)
    means = {name: float(np.mean(values)) for name, values in totals.items()}
    return Figures(count=count, codes_used=len(codes), **means)


def _chunk(stack: Stack, batch: SignBatch, reader: object, codes: set[int], start: int) -> dict[str, list[float]]:
    prompts = [
        sign_prompt(text, colour, template, f"card-{start + i}")
        for i, (text, colour, template) in enumerate(zip(batch.texts, batch.colours, batch.templates, strict=True))
    ]
    tokens = stack.encode(batch.images)
    codes.update(tokens.flatten().tolist())
    generated = reader(stack.generate(prompts).images, prompts)  # type: ignore[operator]
    return {
        "rendered": list(reader(batch.images, prompts).scores),  # type: ignore[operator]
        "reconstruction": list(reader(stack.decode(tokens), prompts).scores),  # type: ignore[operator]
        "generation": list(generated.scores),
        "generation_characters": list(generated.metrics["char"]),
        "reading": [float(a == b) for a, b in zip(stack.answer(tokens, READ, 12), batch.texts, strict=True)],
        "colour": [float(a == b) for a, b in zip(stack.answer(tokens, COLOUR, 12), batch.colours, strict=True)],
    }


def write_card(path: Path, figures: Figures, seed: int, stages: Sequence[Stage], seconds: float | None) -> None:
    """Writes the card as Markdown."""
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.3f} |"
        for name, value in asdict(figures).items()
        if name != "count" and name != "codes_used"
    )
    steps = ", ".join(f"{s.name} {s.steps} steps of {s.batch}" for s in stages)
    took = f"\nTime: {seconds / 60:.0f} minutes.\n" if seconds is not None else ""
    path.write_text(
        f"# Embedded sign stack\n\nMade by `xomni-rl pretrain --seed {seed}`: {steps}.\n{took}\n"
        f"Measured on {figures.count} signs whose strings never occur in training, at temperature 1 without guidance:\n\n"
        f"| figure | value |\n|---|---|\n{rows}\n| codes used | {figures.codes_used} of 512 |\n\n"
        "rendered: OCR exact match of the rendered signs, the ceiling; reconstruction: after tokenizer and decoder;\n"
        "generation: from prompts, before any reinforcement learning; reading and colour: the model's own answers.\n\n"
        "Licence: Apache-2.0. The training images are rendered with the font inside Pillow; nothing else went in.\n"
    )
