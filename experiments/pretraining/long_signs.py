"""Goes on from the embedded weights with larger signs: five sizes, one to three lines, up to about 20 characters.

Image tokenizer and decoder stay as they are; the autoregressive model alone is trained, on batches that hold as many signs of
each size.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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


@dataclass(frozen=True)
class Lesson:
    """A stage and what one of its steps holds.

    Attributes:
        stage: its batch is the sum of `signs`.
        signs: how many of each size.
    """

    stage: Stage
    signs: dict[str, int]


def _lesson(name: str, steps: int, signs: dict[str, int]) -> Lesson:
    batch = sum(signs.values())
    return Lesson(Stage(name, steps, batch, learning_rate=8e-4, weight_decay=0.01, beta2=0.98, save_every=100), signs)


LESSONS = (
    _lesson("ar-line", 900, {"small": 12, "long": 36}),
    _lesson("ar-lines", 1400, {"small": 8, "long": 12, "square": 12, "wide": 12, "large": 12}),
)
"""One line first: where a letter stands in the prompt is learned before which line it stands in. The rate is low enough to
keep what the embedded model knows of copying, which 2.5e-3 loses."""
READING_SHARE = 0.125
"""Share of a batch that reads signs instead of writing them: reading is learned sooner."""
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
    Raises: StackError if `out` holds the work of another seed or recipe, or somebody else's files.
    """
    out, console = Path(out), console or Console()
    lessons = [_quick(lesson) for lesson in LESSONS] if quick else LESSONS
    work = claim(out, {"seed": seed, "lessons": [asdict(lesson) for lesson in lessons]})
    started = time.monotonic()
    stack = Stack.from_pretrained("embedded")
    stack.default_size = DEFAULT_SIZE
    for lesson in lessons:
        done = work / lesson.stage.name
        if done.exists():
            stack.model.load_state_dict(XOmniForCausalLM.from_pretrained(done).state_dict())
            continue
        train_long(lesson, seed, stack, work / f"{lesson.stage.name}.safetensors", console)
        finish(done, stack.model)
    stack.save_pretrained(out, shares="embedded")
    card = evaluate_long_stack(stack, count=figures, console=console)
    write_long_card(out / "README.md", card, seed, [lesson.stage for lesson in lessons], time.monotonic() - started)
    write_long_picture(out / "signs.png", stack)
    shutil.rmtree(work)
    return Stack.from_pretrained(out)


def _quick(lesson: Lesson) -> Lesson:
    signs = dict.fromkeys(lesson.signs, 8)  # one of them reads
    return Lesson(replace(lesson.stage, steps=4, batch=sum(signs.values()), save_every=3), signs)


def train_long(lesson: Lesson, seed: int, stack: Stack, state: Path, console: Console) -> None:
    """Trains the autoregressive model in place, in bfloat16; a step's loss is the mean over its sizes."""
    trainer = AutoregressiveTrainer(stack.model, stack.image_tokenizer, stack.format, READING_SHARE)

    def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        trainer.rng = stream(seed, lesson.stage.name, step)
        losses, parts = [], {}
        for size, count in lesson.signs.items():
            batch = long_sign_batch(trainer.rng, size, count)
            with torch.autocast("cpu", torch.bfloat16):
                loss, found = trainer(batch)
            losses.append(loss)
            parts[size] = found["writing"]
        return torch.stack(losses).mean(), parts

    run_stage(lesson.stage, trainer, step_loss, state, console)
