"""More supervised pre-training of a finished stack, for as long as something else took.

    python -m xomni_rl.experiments.pretraining.further --seconds 240 --seed 0 --out runs/supervised/0

What reinforcement learning is compared with: the same weights to begin with, the same seconds, pictures with their prompts
instead of rewards. The loss and the signs are those of the recipe; the last stage's cycle is gone through once more.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from xomni_rl.experiments.pretraining.loop import Stage
from xomni_rl.experiments.pretraining.recipe import FINISH, train_autoregressive
from xomni_rl.stack.stack import Stack

TRIAL_STEPS = 10
"""Steps of a copy that say how long one takes; they don't count as training."""


def further_pretraining(
    out: Path, *, seconds: float, seed: int, learning_rate: float = FINISH.learning_rate, console: Console | None = None
) -> dict[str, float]:
    """Trains the embedded stack's autoregressive model further and saves the stack.

    Args:
        out: the stack's folder; `further.json` beside its files says what was done.
        seconds: how long; the number of steps is chosen for it beforehand, because the learning rate's cycle needs it.
        seed: of signs and their order.
        learning_rate: the cycle's peak.
        console: where progress goes; None = standard error.
    Returns: seed, steps, signs, learning_rate and the `seconds` it took.
    """
    console = console or Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    state = out / "further.safetensors"
    trial = replace(FINISH, name="trial", steps=TRIAL_STEPS, learning_rate=learning_rate)
    took = _train(Stack.from_pretrained("embedded"), trial, seed, state, console)
    steps = max(1, round(seconds / (took / TRIAL_STEPS)))
    stage = replace(FINISH, name="ar-further", steps=steps, learning_rate=learning_rate, save_every=steps)
    stack = Stack.from_pretrained("embedded")
    took = _train(stack, stage, seed, state, console)
    stack.save_pretrained(out)
    done = {"seed": seed, "steps": steps, "signs": steps * stage.batch, "learning_rate": learning_rate, "seconds": took}
    (out / "further.json").write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return done


def _train(stack: Stack, stage: Stage, seed: int, state: Path, console: Console) -> float:
    """Seconds that a stage took."""
    began = time.perf_counter()
    train_autoregressive(stage, seed, stack, state, console)
    return time.perf_counter() - began


def main(
    out: Annotated[Path, typer.Option(help="The stack's folder.")],
    seconds: Annotated[float, typer.Option(min=1, help="How long to train.")],
    seed: Annotated[int, typer.Option(help="Of signs and their order.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="Peak of the cycle.")] = FINISH.learning_rate,
) -> None:
    """Train the embedded stack further on pictures with their prompts."""
    done = further_pretraining(out, seconds=seconds, seed=seed, learning_rate=learning_rate)
    Console().print(f"{done['steps']} steps, {done['signs']} signs, {done['seconds']:.0f} s: {out}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
