from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from xomni_rl.cli import app
from xomni_rl.commands.preview import GREY, Drawing
from xomni_rl.prompts import Prompt
from xomni_rl.stack.family import families
from xomni_rl.stack.stack import Stack


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack.tiny_random(seed=0)


def test_picture_has_what_is_drawn_and_grey_for_the_rest(stack: Stack) -> None:
    shown: list[Sequence[np.ndarray]] = []
    counted: list[int] = []
    drawing = Drawing(stack, [None] * 2, ["a red sign"] * 2, 20, lambda: counted.append(1), shown.append)
    made = stack.generate(["a red sign"], group_size=2, on_tokens=drawing)
    assert len(counted) == 48
    assert len(shown) == 2  # after 20 and after 40 of 48 tokens
    # 8 px a token, 12 tokens a row: after 20 tokens row 0 is there, and 8 cells of row 1
    first = np.stack(shown[0])
    assert (first[:, 16:] == GREY).all()
    assert (first[:, 8:16, 64:] == GREY).all()
    assert (first[:, :8] != GREY).any()
    assert torch.equal(torch.stack(drawing.tokens, 1), made.tokens)
    assert np.array_equal(drawing.pictures(), made.images)  # nothing is missing any more


def test_picture_of_several_sizes_grows_size_by_size(stack: Stack) -> None:
    prompts = [Prompt("a", "a red sign", size=(16, 32)), Prompt("b", "a sign", size=(16, 16)), Prompt("c", "c", size=(16, 32))]
    shown: list[Sequence[np.ndarray]] = []
    drawing = Drawing(stack, [prompt.size for prompt in prompts], [prompt.text for prompt in prompts], 8, show=shown.append)
    made = stack.generate(prompts, on_tokens=drawing)
    # 2 x 4 tokens of a and c are drawn first, then 2 x 2 of b: after 8 of 12 steps a and c are there, and b is grey
    assert len(drawing.tokens) == 12
    [pictures] = shown
    assert [picture.shape for picture in pictures] == [(16, 32, 3), (16, 16, 3), (16, 32, 3)]
    assert np.array_equal(pictures[0], made.images[0])
    assert np.array_equal(pictures[2], made.images[2])
    assert (pictures[1] == GREY).all()
    assert all(np.array_equal(ours, its) for ours, its in zip(drawing.pictures(), made.images, strict=True))


def test_generate_writes_a_preview_beside_the_contact_sheet(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["generate", 'a red sign that says "K7AX"', "--preview", "30", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "contact_sheet" / "preview.png") as picture:
        assert picture.size == (96 + 8, 32 + 8)  # one cell with 4 px around it
    assert [path.name for path in tmp_path.glob("*.png")] == ["0000.png"]


def test_preview_of_the_best_of_several_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "x", "--preview", "9", "--best-of", "2", "--out", str(tmp_path)])
    assert result.exit_code != 0
    assert "--preview shows images as they are drawn" in result.output


def test_unknown_dtype_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "x", "--dtype", "float31", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert 'unknown --dtype "float31"; nearest: float32' in result.output


def test_folder_of_another_family_is_drawn_with(tmp_path: Path) -> None:
    families.get("janus").tiny_random().save_pretrained(tmp_path / "janus")  # type: ignore[attr-defined]
    command = ["generate", "a red sign", "--stack", str(tmp_path / "janus"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out" / "0000.png") as picture:
        assert picture.width == picture.height
    compiled = CliRunner().invoke(app, [*command, "--compile"])
    assert compiled.exit_code == 1
    assert "is not compiled, that of X-Omni alone is" in " ".join(compiled.output.split())
    answer = CliRunner().invoke(
        app, ["chat", str(tmp_path / "out" / "0000.png"), "What is it?", "--stack", str(tmp_path / "janus")]
    )
    assert answer.exit_code == 1
    assert "draws only" in answer.output
