"""Every file of a stack in every kind of damage: one sentence, and never a stack of random numbers."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.damage import damaged
from xomni_rl.commands.errors import is_for_people, sentence
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.models import Source
from xomni_rl.rewards.models import read_tensors as read_weights
from xomni_rl.stack.stack import Stack, StackError
from xomni_rl.stack.tensor_files import check_fits, read_entries, read_tensors

FILES = (
    "autoregressive/model.safetensors",
    "vision/model.safetensors",
    "projector/projector.safetensors",
    "decoder/transformer/diffusion_pytorch_model.safetensors",
    "decoder/codec.safetensors",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("whole") / "stack"
    Stack.tiny_random(seed=0).save_pretrained(made)
    return made


@pytest.mark.parametrize("file", FILES)
def test_damaged_file_of_a_stack_is_one_sentence(file: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "stack")
    kinds = 0
    for what, data in damaged((folder / file).read_bytes()):
        (tmp_path / "stack" / file).write_bytes(data)
        with pytest.raises(StackError) as caught:
            pytest.fail(f"{what}: {Stack.from_pretrained(tmp_path / 'stack').name} was loaded")
        assert is_for_people(caught.value), what
        assert str(tmp_path / "stack") in sentence(caught.value), what
        kinds += 1
    assert kinds == 7 + 6 + 5 + 9  # cut off, lengths, other files, changed headers
    shutil.copyfile(folder / file, tmp_path / "stack" / file)
    assert Stack.from_pretrained(tmp_path / "stack").weight_hashes() == Stack.from_pretrained(folder).weight_hashes()


@pytest.mark.parametrize(
    "file",
    [
        "stack.json",
        "autoregressive/config.json",
        "projector/config.json",
        "vision/config.json",
        "decoder/transformer/config.json",
    ],
)
@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', "[" * 100_000], ids=["cut off", "a list", "another", "deep"])
def test_damaged_description_of_a_stack_is_one_sentence(file: str, content: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "stack")
    (tmp_path / "stack" / file).write_text(content)
    with pytest.raises(StackError):
        pytest.fail(f"{Stack.from_pretrained(tmp_path / 'stack').name} was loaded")


def test_tensors_of_a_damaged_file_or_shard_are_never_read(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "shard.safetensors"
    for what, data in damaged((folder / "decoder/codec.safetensors").read_bytes()):
        if what in ("a tensor of another name", "whole numbers instead of floating point", "another shape"):
            continue  # a file that is whole; whoever reads it compares it with what is wanted
        path.write_bytes(data)
        for read in (lambda: read_tensors(path), lambda: read_tensors(tmp_path)):
            with pytest.raises(ValueError, match=r"shard\.safetensors"):
                pytest.fail(f"{what}: {list(read())} were read")
        with pytest.raises(RewardUnavailableError, match=r"shard\.safetensors"):
            pytest.fail(f"{what}: {list(read_weights('clip', path, Source('a file', 'a place', 'a licence')))} were read")


def test_header_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="damaged or cut off"):
        read_entries(path)


def test_module_that_a_file_fits_is_accepted(folder: Path) -> None:
    stack = Stack.from_pretrained(folder)
    check_fits(folder / "autoregressive", stack.model)
    check_fits(folder / "autoregressive", stack.model.to(torch.bfloat16))  # of another floating point type
