"""What the shipped weights can do, on held-out signs and with real OCR."""

from importlib.resources import as_file, files

import pytest

from xomni_rl.experiments.pretraining.autoregressive import COLOUR
from xomni_rl.experiments.pretraining.card import Figures, evaluate_stack
from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.stack.stack import Stack


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack.from_pretrained("embedded")


@pytest.fixture(scope="module")
def figures(stack: Stack) -> Figures:
    return evaluate_stack(stack, count=256, seed=11)


def test_weights_are_safetensors_under_twenty_megabytes() -> None:
    with as_file(files("xomni_rl.weights") / "signs") as folder:
        paths = [p for p in folder.rglob("*") if p.is_file()]
        assert sum(p.stat().st_size for p in paths) < 20_000_000
        assert {p.suffix for p in paths} == {".safetensors", ".json", ".md"}


# Standard error of a share over 256 signs: at most sqrt(0.25 / 256) = 0.031; at 0.96 it is 0.012.


def test_reconstructed_signs_are_legible(figures: Figures) -> None:
    assert figures.reconstruction >= 0.93


def test_generation_leaves_room_for_reinforcement_learning(figures: Figures) -> None:
    assert 0.35 <= figures.generation <= 0.65


def test_model_reads_signs_back(figures: Figures) -> None:
    assert figures.reading >= 0.9
    assert figures.colour >= 0.95


def test_chat_reads_a_rendered_sign(stack: Stack) -> None:
    image = render_sign("H4LM", "teal")
    assert stack.chat(image, "What does the sign say?") == "H4LM"
    assert stack.chat(image, COLOUR) == "teal"


def test_decoding_sees_tokens_alone(stack: Stack) -> None:
    """The decoder has no text encoder, so that no prompt can leak into pixels."""
    assert stack.decoder.prompt_encoder is None
