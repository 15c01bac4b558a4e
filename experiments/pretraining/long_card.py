"""Held-out figures of a stack of the larger signs, by size, and the card that records them beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from xomni_rl.prompt_sets.long_signs import SIZES
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, build_reward
from xomni_rl.rewards.text_metrics import recall
from xomni_rl.stack.stack import Stack

from .autoregressive import READ
from .data import LongSignBatch, long_sign_batch, stream
from .loop import Stage

CHUNK = 32
GAP = 8
"""Pixels between the signs of the picture."""


@dataclass(frozen=True)
class LongFigures:
    """Shares in [0, 1] over `count` held-out signs; word recall is the share of the wanted words that OCR reads.

    Attributes:
        rendered: word recall of the rendered signs themselves: the ceiling.
        reconstruction: the same after image tokenizer and decoder.
        generation: word recall of signs generated from prompts.
        generation_characters: their mean character accuracy.
        generation_exact: share of them with every word right and nothing else.
        colour: share of them on the ground that was asked for.
        lines: share of them with as many lines as were asked for.
        reading: mean share of words that the model itself reads in tokenised signs.
    """

    count: int
    rendered: float
    reconstruction: float
    generation: float
    generation_characters: float
    generation_exact: float
    colour: float
    lines: float
    reading: float


def evaluate_long_stack(stack: Stack, count: int = 64, seed: int = 7, console: Console | None = None) -> dict[str, LongFigures]:
    """Figures by size, over `count` held-out signs each, sampled at temperature 1 without guidance."""
    console = console or Console()
    reader = build_reward("ocr", metric="recall", layout="auto")
    rules = {kind: build_reward("rules", kinds=[kind]) for kind in ("background", "lines")}
    found: dict[str, LongFigures] = {}
    for size in SIZES:
        totals: dict[str, list[float]] = {}
        with console.status(f"measuring on {count} held-out {size} signs"):
            for start in range(0, count, CHUNK):
                batch = long_sign_batch(stream(seed, f"figures-{size}", start), size, min(CHUNK, count - start), heldout=True)
                for name, values in _chunk(stack, batch, reader, rules, f"card-{size}-{start}").items():
                    totals.setdefault(name, []).extend(values)
        found[size] = LongFigures(count=count, **{name: float(np.mean(values)) for name, values in totals.items()})
    return found


def _chunk(
    stack: Stack, batch: LongSignBatch, reader: Reward, rules: dict[str, Reward], name: str
) -> dict[str, Sequence[float]]:
    prompts = [sign.prompt(f"{name}-{i}") for i, sign in enumerate(batch.signs)]
    tokens = stack.encode(batch.images)
    images = list(stack.generate(prompts, size=prompts[0].size).images)
    generated = reader(images, prompts)
    answers = stack.answer(tokens, READ, 40)
    return {
        "rendered": _scores(reader, list(batch.images), prompts),
        "reconstruction": _scores(reader, list(stack.decode(tokens)), prompts),
        "generation": list(generated.scores),
        "generation_characters": list(generated.metrics["char"]),
        "generation_exact": list(generated.metrics["exact"]),
        "colour": _scores(rules["background"], images, prompts),
        "lines": _scores(rules["lines"], images, prompts),
        "reading": [recall(answer, text) for answer, text in zip(answers, batch.texts, strict=True)],
    }


def _scores(reward: Reward, images: list[np.ndarray], prompts: list[Prompt]) -> list[float]:
    return list(reward(images, prompts).scores)


def write_long_card(path: Path, figures: dict[str, LongFigures], seed: int, stages: Sequence[Stage], seconds: float) -> None:
    """Writes the card as Markdown; the last row is the mean over the sizes."""
    names = [field.name for field in fields(LongFigures) if field.name != "count"]
    columns = {
        f"{size}, {SIZES[size][0]}×{SIZES[size][1]}": [getattr(f, name) for name in names] for size, f in figures.items()
    }
    columns["mean"] = [float(value) for value in np.mean(list(columns.values()), axis=0)]
    rows = "\n".join(f"| {size} | {' | '.join(f'{v:.3f}' for v in values)} |" for size, values in columns.items())
    head = f"| size | {' | '.join(name.replace('_', ' ') for name in names)} |\n|{'---|' * (len(names) + 1)}"
    count = next(iter(figures.values())).count
    steps = ", ".join(f"{stage.name} {stage.steps} steps of {stage.batch} signs" for stage in stages)
    path.write_text(
        f"# Embedded stack of larger signs\n\n"
        f"Made by `xomni-rl pretrain --domain long_signs --seed {seed}`: {steps};\n"
        f"goes on from the embedded stack, whose image tokenizer and decoder it shares.\n\n"
        f"Time: {seconds / 60:.0f} minutes.\n\n"
        f"Measured on {count} signs of each size whose words never occur in training, at temperature 1 without guidance:\n\n"
        f"{head}\n{rows}\n\n"
        "rendered: share of the words that OCR reads in the rendered signs, the ceiling; reconstruction: after tokenizer and\n"
        "decoder; generation: from prompts, before any reinforcement learning, with characters, exact match, colour of the\n"
        "ground and number of lines; reading: share of the words in the model's own answers.\n\n"
        "Licence: Apache-2.0. The training images are rendered with the font inside Pillow; nothing else went in.\n"
    )


def write_long_picture(path: Path, stack: Stack, seed: int = 7) -> None:
    """Writes a PNG with the card's first two held-out signs of each size: rendered, after tokenizer and decoder, generated."""
    strips = []
    widest = max(width for _, width in SIZES.values()) + GAP
    for size, (height, _) in SIZES.items():
        batch = long_sign_batch(stream(seed, f"figures-{size}", 0), size, 2, heldout=True)
        prompts = [sign.prompt(f"card-{size}-0-{i}") for i, sign in enumerate(batch.signs)]
        stages = (batch.images, stack.decode(stack.encode(batch.images)), stack.generate(prompts, size=SIZES[size]).images)
        for signs in zip(*stages, strict=True):
            strip = np.full((height + GAP, widest * len(signs), 3), 255, np.uint8)
            for place, sign in enumerate(signs):
                strip[:height, place * widest : place * widest + sign.shape[1]] = sign
            strips.append(strip)
    Image.fromarray(np.concatenate(strips)).save(path)
