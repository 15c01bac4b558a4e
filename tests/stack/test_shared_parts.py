"""A stack folder that has an autoregressive model of its own and takes its pixels' parts from another one."""

import json
import shutil
from pathlib import Path

import pytest

from xomni_rl.stack.stack import Stack, StackError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A whole stack, and one that shares its image tokenizer and decoder."""
    whole, sharing = tmp_path / "whole", tmp_path / "sharing"
    Stack.tiny_random(0).save_pretrained(whole)
    Stack.tiny_random(1).save_pretrained(sharing)
    for part in ("vision", "projector", "decoder"):
        shutil.rmtree(sharing / part)
    description = json.loads((sharing / "stack.json").read_text()) | {"pixels": "../whole"}
    (sharing / "stack.json").write_text(json.dumps(description))
    return whole, sharing


def test_pixels_come_from_the_folder_that_is_named(folders: tuple[Path, Path]) -> None:
    whole, sharing = (Stack.from_pretrained(folder).weight_hashes() for folder in folders)
    other = Stack.tiny_random(1).weight_hashes()
    assert sharing == {**whole, "autoregressive": other["autoregressive"]}


def test_saved_again_it_is_whole(folders: tuple[Path, Path], tmp_path: Path) -> None:
    stack = Stack.from_pretrained(folders[1])
    stack.save_pretrained(tmp_path / "again")
    assert Stack.from_pretrained(tmp_path / "again").weight_hashes() == stack.weight_hashes()


def test_missing_part_of_the_other_folder_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "vision/model.safetensors").unlink()
    with pytest.raises(StackError, match=r"sharing lacks vision/model\.safetensors"):
        Stack.from_pretrained(folders[1])
