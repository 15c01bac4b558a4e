from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM

GOLDEN = Path(__file__).parents[1] / "golden" / "autoregressive"


@pytest.fixture(scope="module")
def model() -> XOmniForCausalLM:
    return XOmniForCausalLM.from_pretrained(GOLDEN).eval()


def mixed_ids(model: XOmniForCausalLM, n: int = 2, t: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size + model.config.mm_vocab_size, (n, t), generator=generator)


def test_auto_classes_load_the_published_layout() -> None:
    assert isinstance(AutoConfig.from_pretrained(GOLDEN), XOmniConfig)
    assert isinstance(AutoModelForCausalLM.from_pretrained(GOLDEN), XOmniForCausalLM)


def test_saved_model_loads_to_the_same_weights(model: XOmniForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = XOmniForCausalLM.from_pretrained(tmp_path)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


@torch.no_grad()
def test_cache_gives_the_same_logits_as_one_pass(model: XOmniForCausalLM) -> None:
    ids = mixed_ids(model)
    whole = model(ids, modality="image").logits
    first = model(ids[:, :12], use_cache=True, modality="image")
    rest = model(ids[:, 12:], past_key_values=first.past_key_values, use_cache=True, modality="image")
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_left_padding_does_not_change_logits(model: XOmniForCausalLM) -> None:
    ids = mixed_ids(model, n=1)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones_like(ids)], 1)
    torch.testing.assert_close(model(padded, mask).logits[:, 5:], model(ids).logits, atol=1e-5, rtol=0)


def test_images_alone_give_the_same_with_less_and_text_among_them_is_refused(model: XOmniForCausalLM) -> None:
    text = model.config.vocab_size
    ids = mixed_ids(model) % model.config.mm_vocab_size + text
    whole = model.model(ids).last_hidden_state
    alone = model.model(ids, only_mm=True).last_hidden_state
    assert torch.equal(alone, whole)
    gradient = torch.autograd.grad(alone.square().sum(), model.model.lm_embed_tokens.weight, allow_unused=True)[0]
    assert gradient is None  # of a whole embedding of zeros nothing is made
    with pytest.raises(IndexError):
        model.model(torch.cat([ids, ids - text], 1), only_mm=True)


@torch.no_grad()
def test_text_passes_adapter_and_head_layers_unchanged(model: XOmniForCausalLM) -> None:
    """With every middle layer's output projections zeroed, text hidden states are their embeddings, normalised."""
    import copy

    bare = copy.deepcopy(model)
    for i, layer in enumerate(bare.model.layers):
        if not bare.model.is_mm_only(i):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    ids = torch.arange(10)[None]
    expected = bare.model.lm_norm(bare.model.lm_embed_tokens(ids))
    torch.testing.assert_close(bare.model(ids).last_hidden_state, expected, atol=1e-6, rtol=0)


def test_gradient_checkpointing_gives_the_same_gradients(model: XOmniForCausalLM) -> None:
    ids = mixed_ids(model)
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, modality="image").logits.square().mean().backward()
        gradients.append(model.model.layers[2].mlp.up_proj.weight.grad.clone())
    model.gradient_checkpointing_disable()
    model.eval()
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)


def test_labels_give_the_cross_entropy_of_the_next_token(model: XOmniForCausalLM) -> None:
    ids = mixed_ids(model)
    labels = ids.clone() % model.config.vocab_size
    labels[:, :4] = -100
    out = model(ids, labels=labels)
    logprobs = out.logits.log_softmax(-1)[:, 3:-1]
    expected = -logprobs.gather(-1, labels[:, 4:, None]).mean()
    torch.testing.assert_close(out.loss, expected)


def test_unknown_modality_names_the_choices(model: XOmniForCausalLM) -> None:
    with pytest.raises(ValueError, match="'text' or 'image', not 'sound'"):
        model(mixed_ids(model), modality="sound")  # type: ignore[arg-type]


def test_more_multimodal_layers_than_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_mm_adap_layers"):
        XOmniConfig(num_hidden_layers=4, num_mm_adap_layers=3, num_mm_head_layers=2)
