"""A tiny checkpoint in the published layout goes the way of the real one, end to end."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.stack.published_folder import CODES, FEATURES, tiny_vision, write_checkpoint, write_flux
from xomni_rl.config import compose
from xomni_rl.experiments.run import load_stack, run_training
from xomni_rl.policies.settings import SettingsError
from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.checkpoint import is_published, problems, read_published
from xomni_rl.stack.image_tokenizer import VQProjector
from xomni_rl.stack.sampler import SamplingConfig
from xomni_rl.stack.stack import Stack, StackError

FULL_SIZE = XOmniConfig(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=36,
    num_attention_heads=28,
    num_key_value_heads=4,
)
"""Qwen2.5-7B's 28 layers with 4 + 4 for images."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("checkpoint")
    return write_checkpoint(root / "xomni"), write_flux(root / "flux")


@pytest.fixture(scope="module")
def stack(folders: tuple[Path, Path]) -> Stack:
    return Stack.from_pretrained(folders[0], flux=folders[1])


def test_folder_is_told_from_one_of_ours(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert is_published(folders[0])
    Stack.tiny_random().save_pretrained(tmp_path)
    assert not is_published(tmp_path)
    assert not is_published(tmp_path / "nowhere")


def test_every_part_of_a_whole_folder_is_in_order(folders: tuple[Path, Path]) -> None:
    found = dict(problems(read_published(*folders)))
    parts = ["autoregressive model", "text tokenizer", "vision encoder", "projector", "decoder", "FLUX.1-dev"]
    assert found == dict.fromkeys(parts)


def test_parts_are_loaded_with_the_numbers_that_were_written(folders: tuple[Path, Path], stack: Stack) -> None:
    assert len(list(folders[0].glob("model-*.safetensors"))) > 1
    torch.manual_seed(0)
    expected = XOmniForCausalLM(read_published(folders[0]).config).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in stack.model.state_dict().items())
    vision = tiny_vision().state_dict()
    assert all(torch.equal(value, vision[name]) for name, value in stack.image_tokenizer.vision.state_dict().items())
    projector = VQProjector(FEATURES, CODES, 24).state_dict()
    assert all(torch.equal(value, projector[name]) for name, value in stack.image_tokenizer.projector.state_dict().items())


def test_images_are_generated_read_and_talked_about(stack: Stack) -> None:
    generation = stack.generate(["a red sign", "a blue sign"], size=(32, 48), group_size=2, seed=0)
    assert generation.images.shape == (4, 32, 48, 3)
    assert generation.tokens.shape == (4, 6)
    again = stack.decode(generation.tokens, (32, 48), ["a red sign"] * 2 + ["a blue sign"] * 2)
    assert np.array_equal(again, generation.images)
    assert stack.encode(generation.images).shape == (4, 2, 3)
    assert isinstance(stack.chat(generation.images[0], "What is that?", max_new_tokens=3), str)


def test_guidance_moves_the_published_model_too(stack: Stack) -> None:
    plain, guided = (
        stack.generate(["a red sign"], size=(32, 32), seed=0, sampling=SamplingConfig(cfg_scale=scale)) for scale in (1.0, 4.0)
    )
    assert not torch.equal(plain.logprobs, guided.logprobs)


def test_picture_of_any_size_is_resized_before_it_is_read(stack: Stack) -> None:
    # bounds of this checkpoint: short side 32, long side 96, multiples of 16
    assert stack.fitting(Image.new("RGB", (50, 20))).shape == (32, 80, 3)  # 20 → 32 is a factor of 1.6: 50 → 80
    with pytest.raises(StackError, match="20x80 px is too long"):
        stack.chat(Image.new("RGB", (80, 20)), "What is that?")


def test_decoder_with_text_encoders_needs_the_prompts(stack: Stack) -> None:
    with pytest.raises(StackError, match="give the prompts' texts"):
        stack.decode(torch.zeros(1, 4, dtype=torch.long), (32, 32))


def test_lower_precision_reaches_every_part(folders: tuple[Path, Path]) -> None:
    stack = Stack.from_pretrained(folders[0], dtype=torch.bfloat16, flux=folders[1], decoder={"batch": 1, "offload": True})
    parts = (stack.model, stack.image_tokenizer, stack.decoder, stack.decoder.codec, stack.decoder.prompt_encoder)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert stack.generate(["a red sign"], size=(32, 32)).images.shape == (1, 32, 32, 3)


def test_offloaded_decoder_stays_where_it_rests_when_the_stack_moves(folders: tuple[Path, Path]) -> None:
    stack = Stack.from_pretrained(folders[0], flux=folders[1], decoder={"offload": True}).to("meta")
    assert stack.device == torch.device("meta")
    assert next(stack.decoder.transformer.parameters()).device == torch.device("cpu")
    assert stack.decoder.works_on == torch.device("meta")


def test_full_size_model_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        own = {name: tuple(t.shape) for name, t in XOmniForCausalLM(FULL_SIZE).state_dict().items()}
    hidden, kv, wide = 3584, 4 * 128, 18944
    published = {
        "model.lm_embed_tokens.weight": (152064, hidden),
        "model.mm_embed_tokens.weight": (16448, hidden),
        "model.lm_norm.weight": (hidden,),
        "model.mm_norm.weight": (hidden,),
        "lm_head.weight": (152064, hidden),
        "mm_head.weight": (16448, hidden),
    }
    for layer in (f"model.layers.{index}" for index in range(36)):
        published |= {f"{layer}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        published |= {f"{layer}.mlp.{name}_proj.weight": (wide, hidden) for name in ("gate", "up")}
        published |= {f"{layer}.mlp.down_proj.weight": (hidden, wide), f"{layer}.self_attn.o_proj.weight": (hidden, hidden)}
        for name, size in (("q", hidden), ("k", kv), ("v", kv)):
            published |= {
                f"{layer}.self_attn.{name}_proj.weight": (size, hidden),
                f"{layer}.self_attn.{name}_proj.bias": (size,),
            }
    assert own == published


@pytest.mark.parametrize(
    ("remove", "part", "said"),
    [
        ("model.safetensors.index.json", "autoregressive model", ""),  # all shards are still there: in order
        ("model-00001-of-*.safetensors", "autoregressive model", "lacks model-00001-of"),
        ("tokenizer.json", "text tokenizer", "lacks tokenizer.json, or vocab.json and merges.txt"),
        ("vision/siglip.safetensors", "vision encoder", "no file .*siglip.safetensors"),
        ("vision/projector.pth", "projector", "no file .*projector.pth"),
        ("decoder/config.json", "decoder", "lacks config.json"),
        ("decoder/diffusion-00002-of-00002.safetensors", "decoder", "lacks diffusion-00002-of-00002.safetensors"),
    ],
)
def test_missing_file_is_named_before_anything_is_loaded(
    folders: tuple[Path, Path], tmp_path: Path, remove: str, part: str, said: str
) -> None:
    folder = write_checkpoint(tmp_path / "xomni")
    next(iter(folder.glob(remove))).unlink()
    found = dict(problems(read_published(folder, folders[1])))
    if not said:
        assert found[part] is None
        return
    with pytest.raises(StackError, match=said):
        Stack.from_pretrained(folder, flux=folders[1])
    assert found.pop(part) is not None
    assert set(found.values()) == {None}


def test_tensor_of_another_shape_is_named_with_both_shapes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "xomni")
    config = json.loads((folder / "config.json").read_text())
    longer = config | {"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}
    (folder / "config.json").write_text(json.dumps(longer))
    found = dict(problems(read_published(folder, folders[1])))["autoregressive model"]
    assert found is not None
    assert "model.layers.4.input_layernorm.weight missing" in found
    (folder / "config.json").write_text(json.dumps(config | {"mm_vocab_size": 80}))
    found = dict(problems(read_published(folder, folders[1])))["autoregressive model"]
    assert found is not None
    assert "mm_head.weight is (72, 32), not (80, 32)" in found


def test_configuration_that_contradicts_itself_is_explained(folders: tuple[Path, Path], tmp_path: Path) -> None:
    config = json.loads((folders[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    with pytest.raises(StackError, match=r"config\.json is damaged, or of another architecture"):
        Stack.from_pretrained(tmp_path, flux=folders[1])


def test_flux_folder_is_asked_for_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(StackError, match="flux=FOLDER"):
        Stack.from_pretrained(folders[0])
    with pytest.raises(StackError, match=r"^there is no folder .*nowhere: give FLUX"):
        Stack.from_pretrained(folders[0], flux=tmp_path / "nowhere")
    (tmp_path / "vae").mkdir()
    with pytest.raises(StackError, match="lacks scheduler, text_encoder, text_encoder_2, tokenizer, tokenizer_2"):
        Stack.from_pretrained(folders[0], flux=tmp_path)


def test_upscaling_off_the_tokens_grid_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "xomni", upscale_factor=24)
    with pytest.raises(StackError, match="upscale_factor is 24: only pictures of 16 px per token"):
        Stack.from_pretrained(folder, flux=folders[1])


def test_checkpoint_without_vision_config_says_what_is_missing(tmp_path: Path) -> None:
    XOmniConfig(hidden_size=32).save_pretrained(tmp_path)
    with pytest.raises(StackError, match="lacks vision_config with encoder and decoder"):
        Stack.from_pretrained(tmp_path, flux=tmp_path)


def test_published_checkpoint_is_trained_by_the_configuration(folders: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": f"p{number}", "text": f"a red sign {number}", "size": [32, 32]} for number in range(4)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    overrides = ["model=folder", f"model.path={folders[0]}", "model.dtype=float32", f"+model.options.flux={folders[1]}"]
    overrides += [
        "+model.options.decoder={batch: 2}",
        "prompts=file",
        f"prompts.options.path={prompts}",
        "prompts.train_count=4",
    ]
    overrides += [
        "prompts.heldout_count=0",
        "reward=contrast",
        "trainer=quick",
        "trainer.steps=2",
        "trainer.prompts_per_step=2",
    ]
    overrides += ["trainer.group_size=2", "trainer.evaluate_every=null", "trainer.trackers=[]", f"run={tmp_path / 'run'}"]
    summary = run_training(compose(overrides), console=Console(file=io.StringIO()))
    assert summary.steps == 2
    assert summary.skipped_steps == 0


def test_unknown_option_of_a_family_is_named(folders: tuple[Path, Path]) -> None:
    with pytest.raises(SettingsError, match=r"model\.options: .*'fluxx'"):
        load_stack({"path": str(folders[0]), "options": {"fluxx": "x"}})
