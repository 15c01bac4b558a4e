"""FLUX.1's VAE and text encoders: the published tensors are those of the classes, and nothing is made up."""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.stack.published_folder import write_checkpoint, write_flux
from xomni_rl.stack.checkpoint import problems, read_published
from xomni_rl.stack.flux_parts import check_flux, load_prompt_encoder, load_vae, new_text_encoder, new_vae, own_names
from xomni_rl.stack.tensor_files import check_fits

Shapes = dict[str, tuple[int, ...]]
CLIP_L = {
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
    "vocab_size": 49408,
}
T5_XXL = {
    "model_type": "t5",
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "force_upcast": True,
    "latent_channels": 16,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
"""FLUX.1-dev's configurations, as documented (its files were not at hand); what shapes do not depend on is left out."""


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux(tmp_path_factory.mktemp("whole") / "flux")


@pytest.fixture
def copied(flux: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(flux, tmp_path / "flux"))


def with_bias(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def published_clip() -> Shapes:
    found: Shapes = {"embeddings.token_embedding.weight": (49408, 768), "embeddings.position_embedding.weight": (77, 768)}
    for layer in (f"encoder.layers.{index}" for index in range(12)):
        for name in "qkv":
            found |= with_bias(f"{layer}.self_attn.{name}_proj", 768, 768)
        found |= with_bias(f"{layer}.self_attn.out_proj", 768, 768)
        found |= with_bias(f"{layer}.mlp.fc1", 3072, 768) | with_bias(f"{layer}.mlp.fc2", 768, 3072)
        found |= with_bias(f"{layer}.layer_norm1", 768) | with_bias(f"{layer}.layer_norm2", 768)
    return {f"text_model.{name}": shape for name, shape in (found | with_bias("final_layer_norm", 768)).items()}


def published_t5() -> Shapes:
    found: Shapes = {"shared.weight": (32128, 4096), "encoder.final_layer_norm.weight": (4096,)}
    found["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 64)
    for block in (f"encoder.block.{index}.layer" for index in range(24)):
        found |= {f"{block}.0.SelfAttention.{name}.weight": (4096, 4096) for name in "qkvo"}
        found |= {f"{block}.1.DenseReluDense.{name}.weight": (10240, 4096) for name in ("wi_0", "wi_1")}
        found[f"{block}.1.DenseReluDense.wo.weight"] = (4096, 10240)
        found |= {f"{block}.{number}.layer_norm.weight": (4096,) for number in "01"}
    return found


def published_vae() -> Shapes:
    found: Shapes = with_bias("encoder.conv_in", 128, 3, 3, 3) | with_bias("encoder.conv_out", 32, 512, 3, 3)
    found |= with_bias("decoder.conv_in", 512, 16, 3, 3) | with_bias("decoder.conv_out", 3, 128, 3, 3)
    found |= with_bias("encoder.conv_norm_out", 512) | with_bias("decoder.conv_norm_out", 128)
    for side in ("encoder", "decoder"):
        for number in "01":
            found |= residual(f"{side}.mid_block.resnets.{number}", 512, 512)
        attention = f"{side}.mid_block.attentions.0"
        found |= with_bias(f"{attention}.group_norm", 512) | with_bias(f"{attention}.to_out.0", 512, 512)
        for name in "qkv":
            found |= with_bias(f"{attention}.to_{name}", 512, 512)
    # Two residuals and a halving a block on the way down, three and a doubling on the way up.
    down, up = ("encoder", "down", 2, (128, 256, 512, 512), 128), ("decoder", "up", 3, (512, 512, 256, 128), 512)
    for side, blocks, residuals, widths, before in (down, up):
        for index, width in enumerate(widths):
            name = f"{side}.{blocks}_blocks.{index}"
            for number in range(residuals):
                found |= residual(f"{name}.resnets.{number}", before, width)
                before = width
            if index < 3:
                found |= with_bias(f"{name}.{blocks}samplers.0.conv", width, width, 3, 3)
    return found


def residual(name: str, before: int, width: int) -> Shapes:
    shortcut = with_bias(f"{name}.conv_shortcut", width, before, 1, 1) if before != width else {}
    convolutions = with_bias(f"{name}.conv1", width, before, 3, 3) | with_bias(f"{name}.conv2", width, width, 3, 3)
    return convolutions | with_bias(f"{name}.norm1", before) | with_bias(f"{name}.norm2", width) | shortcut


FULL_SIZE = [
    # Bytes of the published files' tensors, two each: 167,639,366, 246,120,960 and (the index's total_size) 9,524,621,312.
    ("vae", published_vae, lambda: new_vae(VAE), 244, 83_819_683),
    ("text_encoder", published_clip, lambda: new_text_encoder("text_encoder", CLIP_L), 2 + 12 * 16 + 2, 123_060_480),
    ("text_encoder_2", published_t5, lambda: new_text_encoder("text_encoder_2", T5_XXL), 24 * 9 + 3, 4_762_310_656),
]


@pytest.mark.parametrize(("part", "published", "new", "tensors", "numbers"), FULL_SIZE, ids=[row[0] for row in FULL_SIZE])
def test_full_size_part_has_every_published_tensor_and_none_besides(
    part: str, published: Callable[[], Shapes], new: Callable[[], torch.nn.Module], tensors: int, numbers: int, tmp_path: Path
) -> None:
    shapes = published()
    assert (len(shapes), sum(prod(shape) for shape in shapes.values())) == (tensors, numbers)
    write_hollow(tmp_path / "model.safetensors", shapes)
    check_fits(tmp_path, new(), renamed=own_names)


def write_hollow(path: Path, shapes: Shapes) -> None:
    """A file in bfloat16 with a whole header, and a hole where its numbers would be."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def in_memory(file: Path) -> dict[str, torch.Tensor]:
    """Tensors that do not lie in the file, which is written anew."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def under_published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {f"text_model.{name}": tensor for name, tensor in state.items()}
    return named | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def both_embeddings(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return state | {"encoder.embed_tokens.weight": state["shared.weight"].clone()}


def other_embedding(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("shared.weight", "encoder.embed_tokens.weight"): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("text_encoder", under_published_names),
        ("text_encoder_2", both_embeddings),
        ("text_encoder_2", other_embedding),
    ],
)
def test_names_of_published_files_give_the_same_text_encoders(
    part: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], flux: Path, copied: Path
) -> None:
    file, config = copied / part / "model.safetensors", copied / part / "config.json"
    save_file(change(in_memory(file)), file)
    if part == "text_encoder_2":  # as FLUX.1-dev's configuration says, whose embedding is tied all the same
        config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    check_flux(copied)
    expected, found = (load_prompt_encoder(folder, torch.float32) for folder in (flux, copied))
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in expected.state_dict().items())
    texts = ["a red sign"]
    assert all(torch.equal(one, other) for one, other in zip(expected(texts), found(texts), strict=True))


FILES = {
    "vae": ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
    "text_encoder": ("text_encoder/model.safetensors", "encoder.layers.0.mlp.fc1.weight"),
    "text_encoder_2": ("text_encoder_2/model.safetensors", "encoder.final_layer_norm.weight"),
}


def changes(name: str) -> Iterator[tuple[str, Callable[[dict[str, Any]], Any]]]:
    """What the sentence says → the change of a table of tensors."""
    yield f"{name} missing", lambda state: state.pop(name)
    yield "another.weight left over", lambda state: state.update({"another.weight": torch.ones(3)})
    yield f"{name} is (1,), not", lambda state: state.update({name: torch.ones(1)})
    yield f"{name} holds whole numbers", lambda state: state.update({name: state[name].to(torch.int32)})


@pytest.mark.parametrize("part", FILES)
def test_tensor_that_does_not_fit_is_named_with_file_and_remedy_before_anything_is_loaded(
    part: str, copied: Path, tmp_path: Path
) -> None:
    file, tensor = copied / FILES[part][0], FILES[part][1]
    published = read_published(write_checkpoint(tmp_path / "xomni"), copied)
    whole = in_memory(file)
    for said, change in changes(tensor):
        state = dict(whole)
        change(state)
        save_file(state, file)
        with pytest.raises(ValueError, match="copy it again") as caught:
            load_vae(copied, torch.float32) if part == "vae" else load_prompt_encoder(copied, torch.float32)
        assert str(caught.value).startswith(str(file))
        assert said in str(caught.value)
        assert dict(problems(published))["FLUX.1-dev"] == str(caught.value)
    save_file(whole, file)
    assert set(dict(problems(published)).values()) == {None}
