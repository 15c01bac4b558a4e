"""Published files: what is read, and that damage is an error and never more."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from xomni_rl.stack.tensor_files import read_entries, read_tensors, shards


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, path)
    return path


def test_header_has_names_types_and_shapes_without_the_numbers(file: Path) -> None:
    assert read_entries(file) == {"a": ("F32", (2, 3)), "b": ("F32", (4,))}


def test_folder_is_read_shard_by_shard_as_its_index_says(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "x-1.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "x-2.safetensors")
    save_file({"c": torch.zeros(3)}, tmp_path / "of_another.safetensors")
    index = {"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps(index))
    assert read_entries(tmp_path) == {"a": ("F32", (2,)), "b": ("F32", (3,))}
    assert read_tensors(tmp_path).keys() == {"a", "b"}
    (tmp_path / "x-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks x-2\.safetensors"):
        shards(tmp_path)


def test_damaged_index_is_named(tmp_path: Path) -> None:
    for content in ("[]", "{", '{"weight_map": {"a": 3}}', "[" * 100_000):
        (tmp_path / "x.safetensors.index.json").write_text(content)
        with pytest.raises(ValueError, match=r"x\.safetensors\.index\.json is damaged"):
            shards(tmp_path)


def test_index_names_files_of_its_own_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "outside.safetensors")
    (tmp_path / "folder/x.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"lacks outside\.safetensors"):
        shards(tmp_path / "folder")


@given(cut=st.integers(0, 200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_file_cut_off_anywhere_is_an_error(file: Path, cut: int) -> None:
    whole = file.read_bytes()
    shorter = file.with_name("shorter.safetensors")
    shorter.write_bytes(whole[: min(cut, len(whole) - 1)])
    for read in (read_entries, read_tensors):
        with pytest.raises(ValueError, match="damaged"):
            read(shorter)


def test_header_that_claims_to_be_huge_is_not_believed(file: Path) -> None:
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(ValueError, match="damaged or cut off"):
        read_entries(file)


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_pickled_tensors_are_read_where_they_usually_lie(tmp_path: Path, key: str | None) -> None:
    tensors = {"a": torch.ones(2)}
    torch.save(tensors if key is None else {key: tensors, "epoch": 3}, tmp_path / "weights.pth")
    found = read_tensors(tmp_path / "weights.pth")
    assert found.keys() == {"a"}
    assert torch.equal(found["a"], torch.ones(2))


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "was_here"
    torch.save({"a": Harmful(trace)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="damaged, or holds more than tensors"):
        read_tensors(tmp_path / "weights.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Harmful(trace)))
    with pytest.raises(ValueError, match="damaged, or holds more than tensors"):
        read_tensors(tmp_path / "plain.bin")
    assert not trace.exists()


def test_pickled_list_is_no_table_of_tensors(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds no table of tensors"):
        read_tensors(tmp_path / "weights.pth")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*projector\.pth"):
        read_tensors(tmp_path / "projector.pth")
