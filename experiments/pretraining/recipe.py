"""The recipe that makes the embedded weights: image tokenizer, decoder, autoregressive model, the open_clip model that rewards
look with, and their cards.

The autoregressive model is left imperfect on purpose: reinforcement learning needs room to show what it does.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from xomni_rl.experiments.own_files import foreign_file
from xomni_rl.prompt_sets.signs import COLOURS
from xomni_rl.stack import embedded
from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.decoder import DiffusionDecoder, PatchCodec
from xomni_rl.stack.image_tokenizer import SemanticImageTokenizer, to_pixels
from xomni_rl.stack.stack import Stack, StackError
from xomni_rl.stack.text import train_text_tokenizer

from .autoregressive import COLOUR, READ, AutoregressiveTrainer
from .card import evaluate_stack, write_card
from .clip import ClipTrainer, families, new_clip, train_clip_tokenizer, write_clip_folder
from .clip_card import evaluate_clip, write_clip_card
from .data import sign_batch, stream
from .decoder import DecoderTrainer
from .loop import Stage, run_stage
from .tokenizer import TokenizerTrainer

TOKENIZER = Stage("tokenizer", 2200, batch=48, learning_rate=2e-3, weight_decay=1e-4, beta2=0.99)
DECODER = Stage("decoder", 1500, batch=48, learning_rate=1.5e-3, weight_decay=1e-4, beta2=0.99)
AUTOREGRESSIVE = Stage("ar", 1000, batch=64, learning_rate=2e-3, weight_decay=0.01, beta2=0.98)
FINISH = Stage("ar-finish", 300, batch=64, learning_rate=1e-3, weight_decay=0.01, beta2=0.98)
"""A second, lower cycle over the same model."""
CLIP = Stage("clip", 2000, batch=40, learning_rate=1.5e-3, weight_decay=0.05, beta2=0.98)
"""Its batch counts families of three signs."""
WRITTEN = ("README.md", "signs.png", "autoregressive", "text_tokenizer", "vision", "projector", "decoder", "clip")
"""What a finished stack's folder holds, besides its `stack.json`."""


def pretrain(
    out: str | Path, seed: int = 0, *, quick: bool = False, figures: int = 512, console: Console | None = None
) -> Stack:
    """Makes a stack from nothing.

    A stage that is finished in `out` is not run again, and an unfinished one goes on from its last state file.

    Args:
        out: the stack's folder.
        seed: of everything.
        quick: a few steps of each stage, to see the recipe run; the stack is of no use.
        figures: held-out signs behind the card's figures.
        console: where progress goes.
    Returns: the stack; the open_clip model lies in the folder `clip` of `out`.
    Raises: StackError if `out` holds the work of another seed or recipe, or somebody else's files.
    """
    out, console = Path(out), console or Console()
    full = (TOKENIZER, DECODER, AUTOREGRESSIVE, FINISH, CLIP)
    stages = [replace(s, steps=40, batch=16, save_every=15) for s in full] if quick else list(full)
    work = claim(out, {"seed": seed, "stages": [vars(s) for s in stages]})
    started = time.monotonic()
    image_tokenizer = make_tokenizer(stages[0], seed, work, console)
    decoder = make_decoder(stages[1], seed, work, image_tokenizer, console)
    stack = make_autoregressive(stages[2:4], seed, image_tokenizer, decoder, work, console)
    make_clip(stages[4], seed, out / "clip", work, figures, console)
    stack.save_pretrained(out)
    write_card(
        out / "README.md", evaluate_stack(stack, count=figures, console=console), seed, stages[:4], time.monotonic() - started
    )
    shutil.rmtree(work)
    return Stack.from_pretrained(out)


def make_tokenizer(stage: Stage, seed: int, work: Path, console: Console) -> SemanticImageTokenizer:
    """The image tokenizer, trained or read from a finished stage."""
    done = work / "tokenizer"
    if not done.exists():
        torch.manual_seed(seed)
        tokenizer = SemanticImageTokenizer.from_config(embedded.VISION, embedded.PROJECTOR)
        trainer = TokenizerTrainer(tokenizer, rows=embedded.DEFAULT_SIZE[0] // embedded.TOKEN_SIZE)
        run_stage(
            stage,
            trainer,
            lambda step: trainer(sign_batch(stream(seed, stage.name, step), stage.batch, proportional=True)),
            work / "tokenizer.safetensors",
            console,
        )
        finish(done, tokenizer)
    return SemanticImageTokenizer.from_pretrained(done)


def make_decoder(
    stage: Stage, seed: int, work: Path, image_tokenizer: SemanticImageTokenizer, console: Console
) -> DiffusionDecoder:
    """The decoder, trained or read from a finished stage; the projector's decoding half is trained with it."""
    done = work / "decoder"
    projector = image_tokenizer.projector
    if not done.exists():
        torch.manual_seed(seed + 1)
        decoder = DiffusionDecoder.from_config(embedded.DECODER, projector, embedded.TOKEN_SIZE, embedded.DECODER_STEPS)
        assert isinstance(decoder.codec, PatchCodec)
        decoder.codec.fit(to_pixels(sign_batch(stream(seed, "codec", 0), 2000).images))
        trainer = DecoderTrainer(decoder, image_tokenizer)
        run_stage(
            stage,
            trainer,
            lambda step: trainer(sign_batch(stream(seed, stage.name, step), stage.batch, proportional=step % 4 == 0)),
            work / "decoder.safetensors",
            console,
        )
        finish(done, decoder, projector)
    projector.load_state_dict(type(projector).from_pretrained(done / "projector").state_dict())
    return DiffusionDecoder.from_pretrained(done, projector, embedded.TOKEN_SIZE, embedded.DECODER_STEPS)


def make_autoregressive(
    stages: Sequence[Stage],
    seed: int,
    image_tokenizer: SemanticImageTokenizer,
    decoder: DiffusionDecoder,
    work: Path,
    console: Console,
) -> Stack:
    """The autoregressive model, in a whole stack; every stage goes on from the one before."""
    stack = new_stack(seed, image_tokenizer, decoder)
    for stage in stages:
        done = work / stage.name
        if done.exists():
            stack.model.load_state_dict(XOmniForCausalLM.from_pretrained(done).state_dict())
            continue
        train_autoregressive(stage, seed, stack, work / f"{stage.name}.safetensors", console)
        finish(done, stack.model)
    return stack


def new_stack(seed: int, image_tokenizer: SemanticImageTokenizer, decoder: DiffusionDecoder) -> Stack:
    """A stack whose autoregressive model is freshly initialised."""
    torch.manual_seed(seed + 2)
    config = XOmniConfig(**embedded.AUTOREGRESSIVE)
    corpus = sign_batch(stream(seed, "corpus", 0), 2000).prompts()
    corpus += [READ, COLOUR, "user\n", "assistant\n"] * 200 + list(COLOURS) * 100
    text = train_text_tokenizer(corpus, config.vocab_size, config.image_vocab_size, config.mm_special_tokens or ())
    return Stack(XOmniForCausalLM(config), text, image_tokenizer, decoder, "pretraining", embedded.DEFAULT_SIZE)


def train_autoregressive(stage: Stage, seed: int, stack: Stack, state: Path, console: Console) -> None:
    """One stage of the autoregressive model, in place."""
    trainer = AutoregressiveTrainer(stack.model, stack.image_tokenizer, stack.format)

    def step_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        trainer.rng = stream(seed, stage.name, step)
        return trainer(sign_batch(trainer.rng, stage.batch))

    run_stage(stage, trainer, step_loss, state, console)


def make_clip(stage: Stage, seed: int, out: Path, work: Path, figures: int, console: Console) -> None:
    """The open_clip model with its card, in `out`, unless it is there."""
    if out.exists():
        return
    corpus = sign_batch(stream(seed, "clip-corpus", 0), 2000).prompts()
    trainer = ClipTrainer(new_clip(seed), train_clip_tokenizer(corpus))
    run_stage(
        stage,
        trainer,
        lambda step: trainer(families(stream(seed, stage.name, step), stage.batch)),
        work / "clip.safetensors",
        console,
    )
    temporary = out.with_suffix(".writing")
    shutil.rmtree(temporary, ignore_errors=True)
    write_clip_folder(temporary, trainer.model, trainer.tokenizer)
    write_clip_card(temporary / "README.md", evaluate_clip(trainer.model, trainer.tokenizer, figures), seed, stage)
    os.replace(temporary, out)


def finish(folder: Path, *parts: SemanticImageTokenizer | DiffusionDecoder | torch.nn.Module) -> None:
    """Saves a finished stage's parts beside and renames the folder; a projector goes into its own sub-folder."""
    temporary = folder.with_suffix(".writing")
    shutil.rmtree(temporary, ignore_errors=True)
    for part in parts:
        target = temporary / "projector" if part is not parts[0] else temporary
        part.save_pretrained(target)  # type: ignore[operator]
    os.replace(temporary, folder)


def claim(out: Path, recipe: dict[str, object]) -> Path:
    """Writes down what the unfinished work in a stack's folder is of.

    Returns: the folder of that work, which is removed at the end.
    Raises: StackError if it is of something else, or if files of somebody else's would be removed or replaced.
    """
    work, text = out / "pretraining", json.dumps(recipe, indent=1, sort_keys=True)
    path = work / "recipe.json"
    if path.exists() and path.read_text() != text:
        raise StackError(f"{work} holds the unfinished work of another seed or recipe; choose another --out or delete it")
    if not path.exists():
        _check_free(out, work)
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return work


def _check_free(out: Path, work: Path) -> None:
    inside = next(work.iterdir(), None) if work.is_dir() else None
    if foreign := inside or foreign_file(out, WRITTEN, "stack.json"):
        raise StackError(
            f"{foreign} would be removed or replaced and is of no pretraining; choose another --out or move it away"
        )
