"""Every file of a published checkpoint and of its FLUX.1 folder in every kind of damage: the same stack, or one sentence."""

import json
import pickle
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.damage import damaged
from tests.stack.published_folder import write_checkpoint, write_flux
from xomni_rl.commands.errors import is_for_people, sentence
from xomni_rl.stack.checkpoint import problems, read_published
from xomni_rl.stack.stack import Stack, StackError

TENSORS = {
    "xomni/model-00001-of-00005.safetensors": "autoregressive model",
    "xomni/vision/siglip.safetensors": "vision encoder",
    "xomni/decoder/diffusion-00001-of-00002.safetensors": "decoder",
    "flux/vae/diffusion_pytorch_model.safetensors": "FLUX.1-dev",
    "flux/text_encoder/model.safetensors": "FLUX.1-dev",
    "flux/text_encoder_2/model.safetensors": "FLUX.1-dev",
}
"""File → the part that `doctor` finds wrong."""
DESCRIPTIONS = (
    "xomni/config.json",
    "xomni/generation_config.json",
    "xomni/model.safetensors.index.json",
    "xomni/tokenizer.json",
    "xomni/tokenizer_config.json",
    "xomni/decoder/config.json",
    "xomni/decoder/diffusion.safetensors.index.json",
    "flux/scheduler/scheduler_config.json",
    "flux/text_encoder/config.json",
    "flux/text_encoder_2/config.json",
    "flux/tokenizer/tokenizer.json",
    "flux/tokenizer/tokenizer_config.json",
    "flux/tokenizer_2/tokenizer.json",
    "flux/tokenizer_2/tokenizer_config.json",
    "flux/vae/config.json",
)
NO_DESCRIPTIONS = {
    "empty": b"",
    "cut off": b'{"a": ',
    "a list": b"[]",
    "a number": b"1",
    "another": b'{"a": 1}',
    "deep": b"[" * 100_000,
    "deep, of tables": b'{"a": ' * 100_000,
    "no text": b"\xff\xfe\x00",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("published")
    write_checkpoint(made / "xomni")
    write_flux(made / "flux")
    return made


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(root, tmp_path / "copied"))


def load(root: Path) -> Stack:
    return Stack.from_pretrained(root / "xomni", flux=root / "flux")


def refused(root: Path, what: str) -> None:
    """The stack is not loaded, and what is said of it is for people."""
    with pytest.raises(StackError) as caught:
        pytest.fail(f"{what}: {load(root).name} was loaded")
    assert is_for_people(caught.value), what
    assert str(root) in sentence(caught.value), what


@pytest.mark.parametrize("file", TENSORS)
def test_damaged_tensors_are_one_sentence_and_doctor_finds_them(file: str, copied: Path) -> None:
    whole = (copied / file).read_bytes()
    for what, data in damaged(whole):
        (copied / file).write_bytes(data)
        refused(copied, what)
        found = {part for part, problem in problems(read_published(copied / "xomni", copied / "flux")) if problem}
        assert found == {TENSORS[file]}, what


def facts(stack: Stack) -> tuple[Any, ...]:
    """What makes two stacks the same: weights, the ids of a prompt, and the picture of some tokens."""
    ids, mask = stack.encode_prompts(["a red sign"], (32, 32))
    picture = stack.decode(torch.tensor([[1, 2, 3, 4]]), (32, 32), ["a red sign"])
    return stack.weight_hashes(), ids.tolist(), mask.tolist(), picture.tolist()


@pytest.fixture(scope="module")
def whole(root: Path) -> tuple[Any, ...]:
    return facts(load(root))


def same_or_refused(root: Path, whole: tuple[Any, ...], what: str) -> bool:
    """Whether the stack was refused; else it is the same."""
    try:
        stack = load(root)
    except StackError:
        refused(root, what)
        return True
    assert facts(stack) == whole, what
    return False


LESS = ("xomni/generation_config.json", "xomni/tokenizer_config.json")
"""Files that say nothing that the same stack could not do without."""


@pytest.mark.parametrize("file", DESCRIPTIONS)
def test_damaged_description_is_one_sentence(file: str, copied: Path, whole: tuple[Any, ...]) -> None:
    for what, content in NO_DESCRIPTIONS.items():
        (copied / file).write_bytes(content)
        assert same_or_refused(copied, whole, what) or file in LESS, what
    (copied / file).unlink()
    same_or_refused(copied, whole, "missing")


def test_damaged_pickled_projector_is_one_sentence(copied: Path) -> None:
    file = copied / "xomni/vision/projector.pth"
    data, state = file.read_bytes(), torch.load(file, weights_only=True)
    name = next(iter(state))
    for kept in (0, 4, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:kept])
        refused(copied, f"cut off at {kept}")
    changed: dict[str, Any] = {
        "a tensor missing": {key: value for key, value in state.items() if key != name},
        "another shape": state | {name: torch.ones(1)},
        "whole numbers": state | {name: state[name].to(torch.int32)},
        "a list": [1, 2],
        "no tensors": {"a": 1},
        "numbers without memory": state | {name: torch.empty(1).expand(2**40)},
    }
    for what, value in changed.items():
        torch.save(value, file)
        refused(copied, what)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_pickles_and_adapters_beside_are_never_read(copied: Path, whole: tuple[Any, ...]) -> None:
    trace, pickled = copied / "was_here", pickle.dumps(Harmful(copied / "was_here"))
    folders = [copied / "xomni", copied / "xomni/decoder", *(copied / "flux" / part for part in ("vae", "text_encoder"))]
    folders.append(copied / "flux/text_encoder_2")
    for folder in folders:
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "adapter_model.bin", "model.ckpt"):
            (folder / name).write_bytes(pickled)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)}))
        config = json.loads((folder / "config.json").read_text())
        outside = {
            "transformers_weights": "adapter_model.bin",
            "auto_map": {"AutoModel": "x--y.Z"},
            "attn_implementation": "a/b",
        }
        (folder / "config.json").write_text(json.dumps(config | outside))
    assert facts(load(copied)) == whole
    for folder in folders:
        for file in folder.glob("*.safetensors"):
            moved = file.rename(file.with_suffix(".away"))
            refused(copied, str(file))
            moved.rename(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("xomni/config.json", "num_hidden_layers", 10**9),
        ("xomni/config.json", "hidden_size", 10**6),
        ("xomni/config.json", "vocab_size", 10**12),
        ("xomni/config.json", "hidden_size", -1),
        ("xomni/config.json", "num_attention_heads", 0),
        ("xomni/config.json", "quantization_config", {"load_in_4bit": True}),
        ("xomni/decoder/config.json", "num_layers", 10**9),
        ("xomni/decoder/config.json", "joint_attention_dim", 10**7),
        ("xomni/decoder/config.json", "num_attention_heads", 0),
        ("flux/vae/config.json", "block_out_channels", [10**9] * 4),
        ("flux/vae/config.json", "layers_per_block", 10**9),
        ("flux/vae/config.json", "norm_num_groups", 0),
        ("flux/text_encoder/config.json", "vocab_size", 10**7),
        ("flux/text_encoder/config.json", "num_hidden_layers", 10**9),
        ("flux/text_encoder_2/config.json", "num_layers", 10**9),
        ("flux/text_encoder_2/config.json", "d_model", "wide"),
        ("flux/scheduler/scheduler_config.json", "num_train_timesteps", 10**12),
    ],
)
def test_numbers_beyond_measure_take_no_memory(file: str, key: str, value: Any, copied: Path) -> None:
    config = json.loads((copied / file).read_text())
    (copied / file).write_text(json.dumps(config | {key: value}))
    before = peak()
    refused(copied, f"{key} {value}")
    assert peak() - before < 500


def peak() -> float:
    """The most memory this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform != "darwin" else 1024) / 1024
