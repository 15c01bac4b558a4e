"""Sizes are those of the real classes and files."""

from pathlib import Path

import pytest

from xomni_rl.experiments.planning.sizes import (
    FULL_SIZE,
    ModelSizes,
    full_size_model,
    full_size_parts,
    model_config,
    part_sizes,
)
from xomni_rl.policies.lora import add_adapters
from xomni_rl.stack.incremental import IncrementalSampler
from xomni_rl.stack.stack import Stack


def test_full_size_model_is_counted_tensor_by_tensor() -> None:
    h, i, kv = 3584, 18944, 512
    # q and o h², k and v h·kv, biases of q, k, v; gate, up, down; two norms.
    layer = 2 * h * h + 2 * h * kv + h + 2 * kv + 3 * h * i + 2 * h
    rest = 2 * 152064 * h + 2 * 16448 * h + 2 * h  # text and image embeddings and heads, two last norms
    sizes = full_size_model()
    assert sizes.parameters == 36 * layer + rest == 9_597_981_696
    assert (sizes.body, sizes.unreached, sizes.largest) == (36 * layer, 152064 * h, 152064 * h)
    assert sizes.joined == 36 * (h * (h + 2 * kv) + h + 2 * kv + 2 * h * i) + 16384 * h


def test_full_size_has_the_fields_of_the_public_checkpoint() -> None:
    assert FULL_SIZE["num_hidden_layers"] == 28 + 4 + 4  # Qwen2.5-7B's and those for images
    assert (FULL_SIZE["mm_vocab_size"], FULL_SIZE["image_vocab_size"]) == (16448, 16384)


def test_parts_of_the_full_size_are_flux_and_siglip() -> None:
    parts = full_size_parts()
    # FLUX.1-dev's 11,901,408,320 and the injected layer 1536 → 3072 with its bias.
    assert parts.transformer == 11_901_408_320 + 1536 * 3072 + 3072
    assert parts.encoders == 4_762_310_656 + 123_060_480  # T5-XXL's encoder, CLIP-L's text tower
    assert (parts.codec, parts.width, parts.blocks) == (83_819_683, 3072, 57)


def test_parts_of_a_stack_folder_are_read_from_its_files(tmp_path: Path) -> None:
    stack = Stack.tiny_random()
    stack.save_pretrained(tmp_path)
    parts = part_sizes(str(tmp_path))
    assert parts.transformer == sum(p.numel() for p in stack.decoder.transformer.parameters())
    assert parts.tokenizer == sum(t.numel() for t in stack.image_tokenizer.state_dict().values())
    assert (parts.default_size, parts.pixels, parts.blocks, parts.batch) == ((32, 96), 8, 1, None)
    config = model_config(str(tmp_path))
    assert config is not None
    assert ModelSizes.of(config).parameters == sum(p.numel() for p in stack.model.parameters())


def test_folder_without_a_model_has_no_configuration(tmp_path: Path) -> None:
    assert model_config(str(tmp_path)) is None


@pytest.mark.parametrize("full", [(), ("mm_head",)])
def test_adapters_have_as_many_elements_as_peft_makes(full: tuple[str, ...]) -> None:
    stack = Stack.tiny_random()
    expected = ModelSizes.of(stack.model.config).adapters(4, full=full)
    add_adapters(stack.model, rank=4, full=full)
    assert sum(p.numel() for p in stack.model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("adapted", [False, True])
def test_sampler_copies_as_many_elements_as_planned(adapted: bool) -> None:
    stack = Stack.tiny_random()
    sizes = ModelSizes.of(stack.model.config)
    if adapted:
        add_adapters(stack.model, rank=4)
    own = {p.untyped_storage().data_ptr() for p in stack.model.parameters()}
    ids, mask = stack.encode_prompts(["a red sign"])
    sampler = IncrementalSampler(stack.model, ids, mask, 48)
    held = [tensor for layer in sampler.layers for tensor in vars(layer).values()] + [sampler.head]
    copied = sum(tensor.numel() for tensor in held if tensor.untyped_storage().data_ptr() not in own)
    assert copied == sizes.joined + (sizes.unjoined if adapted else 0)
    assert sum(t.numel() for t in (*sampler.keys, *sampler.values)) == 2 * 3 * 2 * 32 * (ids.shape[1] + 48)
