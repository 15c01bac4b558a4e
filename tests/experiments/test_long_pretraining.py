"""The recipe of the larger signs: its batches, its card, and that a few steps of it make a stack."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from xomni_rl.experiments.pretraining.autoregressive import AutoregressiveTrainer
from xomni_rl.experiments.pretraining.data import long_sign_batch, stream
from xomni_rl.experiments.pretraining.long_card import LongFigures, write_long_card, write_long_picture
from xomni_rl.experiments.pretraining.long_signs import LESSONS, pretrain_long
from xomni_rl.prompt_sets.long_signs import SIZES
from xomni_rl.prompt_sets.signs import is_heldout
from xomni_rl.stack.stack import Stack, StackError


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack.from_pretrained("embedded")


def test_batch_depends_on_seed_stage_and_step_alone() -> None:
    first, again = (long_sign_batch(stream(0, "ar-long", 5), "wide", 4) for _ in range(2))
    assert np.array_equal(first.images, again.images)
    assert first.prompts() == again.prompts()
    assert long_sign_batch(stream(0, "ar-long", 6), "wide", 4).texts != first.texts


@pytest.mark.parametrize("heldout", [False, True])
def test_batch_has_words_of_its_split_alone(heldout: bool) -> None:
    texts = long_sign_batch(stream(0, "ar-long", 0), "large", 32, heldout=heldout).texts
    assert {is_heldout(word) for text in texts for word in text.split()} == {heldout}


@pytest.mark.parametrize("size", SIZES)
def test_loss_of_every_size_is_finite_and_teaches(stack: Stack, size: str) -> None:
    trainer = AutoregressiveTrainer(stack.model, stack.image_tokenizer, stack.format)
    loss, parts = trainer(long_sign_batch(stream(0, "ar-long", 0), size, 4))
    assert set(parts) == {"writing", "reading"}
    gradients = torch.autograd.grad(loss, [p for p in stack.model.parameters() if p.requires_grad], allow_unused=True)
    assert any(g is not None and bool(g.abs().max() > 0) for g in gradients)


def test_longest_sign_fits_the_models_context(stack: Stack) -> None:
    # A large sign: 12 × 20 = 240 image tokens; prompt, question and answer around it must fit into the rest.
    batch = long_sign_batch(stream(0, "ar-long", 0), "large", 64)
    assert stack.grid(SIZES["large"]) == (12, 20)
    ids, _ = stack.encode_prompts(batch.prompts(), SIZES["large"])
    assert ids.shape[1] + 240 <= stack.model.config.max_position_embeddings
    assert len(stack.answer(stack.encode(batch.images[:1]), "What does the sign say?", 40)) == 1


def test_card_has_a_row_for_every_size_and_their_mean(tmp_path: Path) -> None:
    figures = {
        size: LongFigures(64, 1.0, 0.9, 0.1 * place, 0.5, 0.25, 1.0, 1.0, 0.75) for place, size in enumerate(SIZES, start=1)
    }
    write_long_card(tmp_path / "README.md", figures, 3, [lesson.stage for lesson in LESSONS], 120.0)
    card = (tmp_path / "README.md").read_text()
    assert "| wide, 64×192 | 1.000 | 0.900 | 0.400 |" in card
    assert "| mean | 1.000 | 0.900 | 0.300 |" in card  # (0.1 + … + 0.5) / 5
    assert "xomni-rl pretrain --domain long_signs --seed 3" in card
    assert "Time: 2 minutes." in card


def test_picture_shows_two_signs_of_each_size_in_three_stages(stack: Stack, tmp_path: Path) -> None:
    write_long_picture(tmp_path / "signs.png", stack)
    # Three columns of 192 px and a gap of 8; two signs each of 32, 32, 96, 64 and 96 px with a gap: 2 · (320 + 5 · 8).
    assert Image.open(tmp_path / "signs.png").size == (600, 720)


def test_unfinished_work_of_another_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pretraining").mkdir()
    (tmp_path / "pretraining/recipe.json").write_text("{}")
    with pytest.raises(StackError, match="another seed or recipe"):
        pretrain_long(tmp_path, console=Console(quiet=True))


@pytest.mark.slow
def test_quick_recipe_writes_a_stack_that_draws_every_size(tmp_path: Path) -> None:
    out = tmp_path / "stack"
    pretrain_long(out, quick=True, figures=2, console=Console(quiet=True))
    stack = Stack.from_pretrained(out)
    assert stack.default_size == SIZES["wide"]
    for size in SIZES.values():
        assert stack.generate(["a"], size=size).images.shape == (1, *size, 3)
    assert "| large, 96×160 |" in (out / "README.md").read_text()
    assert (out / "signs.png").is_file()
    assert not (out / "pretraining").exists()
    # The parts that it does not train are those of the embedded stack.
    start = Stack.from_pretrained("embedded").weight_hashes()
    assert {part for part, digest in stack.weight_hashes().items() if digest != start[part]} == {"autoregressive"}
