"""Goes on from the embedded weights with larger signs: five sizes, one to three lines, up to about 20 characters.

Image tokenizer and decoder stay as they are; the autoregressive model alone is trained, on batches that hold as many signs of
each size.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from xomni_rl.prompt_sets.long_signs import SIZES
from xomni_rl.stack.autoregressive import XOmniForCausalLM
from xomni_rl.stack.stack import Stack

from .autoregressive import AutoregressiveTrainer
from .data import long_sign_batch, stream
from .long_card import evaluate_long_stack, write_long_card, write_long_picture
from .loop import Stage, run_stage
from .recipe import claim, finish

LONG = Stage("ar-long", 420, batch=12, learning_rate=1.5e-3, weight_decay=0.01, beta2=0.98, save_every=100)
"""Its batch counts the signs of each size. Far too few steps yet: docs/results/long_text.md has the figures."""
DEFAULT_SIZE = SIZES["wide"]


def pretrain_long(
    out: str | Path, seed: int = 0, *, quick: bool = False, figures: int = 64, console: Console | None = None
) -> Stack:
    """Makes a stack of larger signs from the embedded one, with a card and a picture.

    A stage that is finished in `out` is not run again, and an unfinished one goes on from its last state file.

    Args:
        out: the stack's folder.
        seed: of signs and their order.
        quick: a few steps, to see the recipe run; the stack is of no use.
        figures: held-out signs of each size behind the card's figures.
        console: where progress goes.
    Raises: StackError if `out` holds the work of another seed or recipe.
    """
    out, console = Path(out), console or Console()
    stage = replace(LONG, steps=6, batch=4, save_every=4) if quick else LONG
    work = out / "pretraining"
    work.mkdir(parents=True, exist_ok=True)
    claim(work / "recipe.json", {"seed": seed, "stages": [vars(stage)]})
    started = time.monotonic()
    stack = Stack.from_pretrained("embedded")
    stack.default_size = DEFAULT_SIZE
    if (work / stage.name).exists():
        stack.model.load_state_dict(XOmniForCausalLM.from_pretrained(work / stage.name).state_dict())
    else:
        train_long(stage, seed, stack, work / f"{stage.name}.safetensors", console)
        finish(work / stage.name, stack.model)
    stack.save_pretrained(out)
    card = evaluate_long_stack(stack, count=figures, console=console)
    write_long_card(out / "README.md", card, seed, stage, time.monotonic() - started)
    write_long_picture(out / "signs.png", stack)
    shutil.rmtree(work)
    return Stack.from_pretrained(out)


def train_long(stage: Stage, seed: int, stack: Stack, state: Path, console: Console) -> None:
    """Trains the autoregressive model in place; a step's loss is the mean over all sizes."""
    trainer = AutoregressiveTrainer(stack.model, stack.image_tokenizer, stack.format)

    def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        trainer.rng = stream(seed, stage.name, step)
        losses, parts = zip(*(trainer(long_sign_batch(trainer.rng, size, stage.batch)) for size in SIZES), strict=True)
        return torch.stack(losses).mean(), {name: float(np.mean([each[name] for each in parts])) for name in parts[0]}

    run_stage(stage, trainer, step_loss, state, console)
