"""X-Omni's arithmetic for vLLM against our own model; vLLM itself is not here, so nothing of it is run."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from xomni_rl.stack.autoregressive import XOmniForCausalLM
from xomni_rl.stack.stack import Stack
from xomni_rl.stack.vllm_plugin import (
    embedded,
    joint_logits,
    joint_vocabulary,
    marked,
    mm_only_layers,
    run_layers,
    target,
    text_vocab_size,
    unmarked,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack.tiny_random(seed=0)


@pytest.fixture(scope="module")
def model(stack: Stack) -> XOmniForCausalLM:
    return stack.model


def test_entry_point_names_the_registration() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, function = project["entry-points"]["vllm.general_plugins"]["xomni"].split(":")
    assert callable(getattr(import_module(module), function))
    assert "vllm" in project["optional-dependencies"]


def test_every_tensor_has_its_place_and_joined_ones_their_parts(model: XOmniForCausalLM) -> None:
    found: dict[str, dict[str | int | None, tuple[int, ...]]] = {}
    for name, tensor in model.state_dict().items():
        own, part = target(name)
        assert part not in found.setdefault(own, {})
        found[own][part] = tuple(tensor.shape)
    # per layer 2 norms, qkv (weight and bias), o, gate_up, down are 7 parameters; besides two embeddings, norms and heads
    assert len(found) == 7 * 3 + 6
    # hidden 192, 6 heads of 32 and 2 key heads of 32; feed-forward 512
    layer = "model.layers.2"
    assert found[f"{layer}.self_attn.qkv_proj.weight"] == {"q": (192, 192), "k": (64, 192), "v": (64, 192)}
    assert found[f"{layer}.self_attn.qkv_proj.bias"] == {"q": (192,), "k": (64,), "v": (64,)}
    assert found[f"{layer}.mlp.gate_up_proj.weight"] == {0: (512, 192), 1: (512, 192)}
    assert found["lm_head.weight"] == {None: (384, 192)}
    assert found["mm_head.weight"] == {None: (528, 192)}


@torch.no_grad()
def test_layers_and_logits_of_a_mixed_sequence_are_the_models(stack: Stack, model: XOmniForCausalLM) -> None:
    ids = torch.cat([stack.encode_prompts(["a red sign"])[0], torch.tensor([[384, 400, 895]])], 1)[0]
    config, positions = model.config, torch.arange(len(ids))
    hidden, is_mm = embedded(ids, config.vocab_size, model.model.lm_embed_tokens, model.model.mm_embed_tokens)
    rotary = model.model.rotary_emb(hidden[None], positions[None])

    def as_vllm_has_it(index: int):  # what is added to the residual, and the residual
        def layer(positions: Tensor, hidden: Tensor, residual: None) -> tuple[Tensor, Tensor]:
            out = model.model.layers[index](hidden[None], position_embeddings=rotary, attention_mask=None)[0]
            return out - hidden, hidden

        return layer

    layers = [as_vllm_has_it(index) for index in range(config.num_hidden_layers)]
    hidden = run_layers(layers, mm_only_layers(config), positions, hidden, is_mm)
    hidden = torch.where(is_mm, model.model.mm_norm(hidden), model.model.lm_norm(hidden))
    hidden, kept = unmarked(marked(hidden, is_mm))
    assert torch.equal(kept, is_mm)
    width = config.vocab_size + config.mm_vocab_size
    text, image = (model.head(hidden, modality) for modality in ("text", "image"))
    logprobs = joint_logits(text, image, kept, width).log_softmax(-1)
    assert logprobs.shape == (len(ids), 384 + 528)
    for modality, start, stop, rows in (("text", 0, 384, ~is_mm[:, 0]), ("image", 384, 896, is_mm[:, 0])):
        assert rows.any()
        expected = model(ids[None], modality=modality).logits[0].log_softmax(-1)  # type: ignore[arg-type]
        torch.testing.assert_close(logprobs[rows, start:stop], expected[rows], atol=2e-5, rtol=0)
        others = torch.ones(width, dtype=torch.bool)
        others[start:stop] = False
        assert (logprobs[rows][:, others] == -torch.inf).all()


def test_mm_only_layers_are_the_models(model: XOmniForCausalLM) -> None:
    assert mm_only_layers(model.config) == [model.model.is_mm_only(i) for i in range(model.config.num_hidden_layers)]


def test_one_vocabulary_counts_text_and_multimodal_ids_once(model: XOmniForCausalLM) -> None:
    config = type(model.config)(**model.config.to_dict())
    with pytest.raises(ValueError, match="hf_overrides=xomni_rl"):
        text_vocab_size(config)
    for _ in range(2):  # vLLM may ask in several processes
        config = joint_vocabulary(config)
        assert (config.vocab_size, text_vocab_size(config)) == (384 + 528, 384)
