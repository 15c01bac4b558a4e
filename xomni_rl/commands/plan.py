"""`xomni-rl plan`: what a training run needs of its GPUs."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE …] gpus=8x80GB", help="Overrides as of train, and the words below.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes and seconds.")] = False,
) -> None:
    """Does this training run fit, how long is a step, and what has to change?

    Computes, without loading or training anything, what one GPU holds in each phase of a step (weights, divided copy,
    gradients, moments, reference, sampler's copies, KV cache, activations, logits, decoder, rewards), what is left, and an
    estimate of seconds. What does not fit is followed by changes in order, each planned again. Memory is checked against
    measured runs on a CPU; no figure was measured on a GPU.

    Words of its own, beside every override of `xomni-rl train`:

    • gpus=8x80GB — number and memory, or a name: 8xH100, 4xH200, RTX4090 (default: 1x80GB)

    • launch=fsdp2 — single, ddp, fsdp2 or deepspeed_zero3, the files of experiments/launch; trainer=fsdp2 is short for
    launch=fsdp2 trainer=paper

    • size=1152x1152 — height and width of an image in px (default: the stack's own)

    • prompt_tokens=128 — ids of a prompt

    Examples:

    • xomni-rl plan model=xomni_7b trainer=fsdp2 gpus=8x80GB

    • xomni-rl plan model=xomni_7b trainer=paper model.lora='{rank: 16, alpha: 32}' size=384x384 gpus=8xH100

    • xomni-rl plan model=folder model.path=my_stack algorithm.options.kl_coef=0.01 gpus=RTX4090 --json
    """
    from rich.console import Console

    from xomni_rl.experiments.planning import show
    from xomni_rl.experiments.planning.words import planned

    job = planned(words or [])
    if as_json:
        typer.echo(json.dumps(show.as_json(job)))
        return
    show.show(job, Console())
