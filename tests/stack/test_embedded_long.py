"""The weights for larger signs: what they share with the embedded stack, and what they draw on held-out signs with real OCR."""

import json
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from xomni_rl.experiments.pretraining.long_card import LongFigures, evaluate_long_stack
from xomni_rl.prompt_sets.long_signs import SIZES
from xomni_rl.stack.stack import Stack, StackError


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack.from_pretrained("embedded_long")


@pytest.fixture(scope="module")
def figures(stack: Stack) -> dict[str, LongFigures]:
    return evaluate_long_stack(stack, count=24, seed=11)


def test_weights_are_those_of_the_autoregressive_model_alone() -> None:
    with as_file(files("xomni_rl.weights") / "signs_long") as folder:
        paths = [p for p in folder.rglob("*") if p.is_file()]
        assert sum(p.stat().st_size for p in paths) < 10_000_000
        assert [p.name for p in paths if p.suffix == ".safetensors"] == ["model.safetensors"]


def test_pixels_are_drawn_by_the_embedded_stacks_parts(stack: Stack) -> None:
    own, shared = stack.weight_hashes(), Stack.from_pretrained("embedded").weight_hashes()
    assert {part for part, digest in own.items() if digest != shared[part]} == {"autoregressive"}
    assert stack.default_size == SIZES["wide"]


def test_stack_that_shares_with_something_else_is_refused(stack: Stack, tmp_path: Path) -> None:
    stack.save_pretrained(tmp_path, shares="embedded")
    path = tmp_path / "stack.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shares": "elsewhere"}))
    with pytest.raises(StackError, match=r"stack\.json: shares is 'elsewhere'"):
        Stack.from_pretrained(tmp_path)


def test_saved_whole_it_needs_no_other_stack(stack: Stack, tmp_path: Path) -> None:
    stack.save_pretrained(tmp_path)
    assert "shares" not in json.loads((tmp_path / "stack.json").read_text())
    assert Stack.from_pretrained(tmp_path).weight_hashes() == stack.weight_hashes()


# Standard error of a share over 24 signs: at most sqrt(0.25 / 24) = 0.10; of the mean of 120 signs' shares 0.05. The card says
# 0.95 of the small signs' words, 0.44 of all, colour 1.0, lines 0.97.


def test_held_out_words_are_written_and_leave_room_for_reinforcement_learning(figures: dict[str, LongFigures]) -> None:
    assert figures["small"].generation >= 0.75
    assert 0.3 <= sum(each.generation for each in figures.values()) / len(figures) <= 0.6


def test_instructions_are_followed(figures: dict[str, LongFigures]) -> None:
    assert all(each.colour >= 0.9 for each in figures.values())
    assert all(each.lines >= 0.75 for each in figures.values())
