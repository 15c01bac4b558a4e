"""Janus-Pro and Emu3 as stacks: the same tokens, log-probabilities and pixels as transformers' own models give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xomni_rl.registry import UnknownNameError
from xomni_rl.stack.distribution import guide
from xomni_rl.stack.families.emu3 import END_OF_ROW, OPEN, Emu3Stack
from xomni_rl.stack.families.janus import JanusStack
from xomni_rl.stack.family import families
from xomni_rl.stack.pretrained import PretrainedStack
from xomni_rl.stack.sampler import SamplingConfig, sample_image_tokens, sample_uniforms, score_image_tokens
from xomni_rl.stack.stack import Stack, StackError

TEXTS = ["a red sign", 'blue, "K7AX"', "no"]
GREEDY = SamplingConfig(top_k=1)
SAMPLINGS = [SamplingConfig(), SamplingConfig(temperature=0.7, top_k=30, top_p=0.9), SamplingConfig(cfg_scale=2.5)]


@pytest.fixture(scope="module", params=["janus", "emu3"])
def stack(request: pytest.FixtureRequest) -> PretrainedStack:
    made: Any = families.get(request.param).tiny_random(seed=0)
    return made


@pytest.fixture(scope="module")
def janus() -> JanusStack:
    return JanusStack.tiny_random(seed=0)


@pytest.fixture(scope="module")
def emu3() -> Emu3Stack:
    return Emu3Stack.tiny_random(seed=0)


def draw(stack: PretrainedStack, sampling: SamplingConfig, group_size: int = 2) -> tuple[Any, tuple[Tensor, Tensor], Any]:
    """Samples of TEXTS, their prompts, and what else sampling and scoring take."""
    ids, mask = stack.encode_prompts(TEXTS)
    negative = stack.negative_prompts(ids, mask) if sampling.guided else (None, None)
    height, width = stack.grid()
    rows, indices = [text for text in TEXTS for _ in range(group_size)], list(range(group_size)) * len(TEXTS)
    uniforms = sample_uniforms(0, rows, indices, height * width)
    context = {"negative_ids": negative[0], "negative_mask": negative[1], "group_size": group_size}
    samples = sample_image_tokens(stack.model, ids, mask, height * width, **vars(sampling), uniforms=uniforms, **context)
    return samples, (ids, mask), context


def janus_logits(stack: JanusStack, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """[N, T, V] by one pass over whole sequences of transformers' model, a row per sequence."""
    core = stack.whole.model
    image = stack.whole.prepare_embeddings_for_image_generation(tokens[:, :-1])
    embedded = torch.cat([stack.whole.get_input_embeddings()(ids), image], 1)
    seen = torch.cat([mask, torch.ones_like(tokens[:, :-1])], 1)
    hidden = core.language_model(inputs_embeds=embedded, attention_mask=seen).last_hidden_state
    return core.generation_head(hidden[:, ids.shape[1] - 1 :])


def emu3_sequence(stack: Emu3Stack, tokens: Tensor) -> Tensor:
    """Ids [N, h · (w + 1)] of whole images, each row with its end, by transformers' own conversion."""
    convert = stack.whole.vocabulary_mapping.convert_img2bpe
    return torch.stack([convert(image).flatten().long() for image in tokens.view(-1, *stack.grid())])


def emu3_logits(stack: Emu3Stack, ids: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    """[N, T, V] by one pass over whole sequences of transformers' model, a row per sequence; ends of rows left out."""
    height, width = stack.grid()
    image = emu3_sequence(stack, tokens)
    full, seen = torch.cat([ids, image], 1), torch.cat([mask, torch.ones_like(image)], 1)
    logits = stack.whole(full, attention_mask=seen).logits[:, ids.shape[1] - 1 : -1]  # they predict the image's ids
    visual = stack.whole.vocabulary_mapping.img2bpe_mapping_tensor.long()
    return logits.view(-1, height, width + 1, logits.shape[-1])[:, :, :width].flatten(1, 2)[..., visual]


def plain_logits(stack: PretrainedStack) -> Callable[..., Tensor]:
    return janus_logits if isinstance(stack, JanusStack) else emu3_logits  # type: ignore[return-value]


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_logprobs_equal_a_plain_pass_over_the_whole_sequence(stack: PretrainedStack, scale: float) -> None:
    samples, (ids, mask), context = draw(stack, SamplingConfig(cfg_scale=scale))
    rows = [each.repeat_interleave(2, 0) for each in (ids, mask)]
    logits = plain_logits(stack)(stack, *rows, samples.tokens)
    if scale != 1.0:
        negative = [context[name].repeat_interleave(2, 0) for name in ("negative_ids", "negative_mask")]
        logits = guide(logits, plain_logits(stack)(stack, *negative, samples.tokens), scale)
    expected = logits.log_softmax(-1).gather(-1, samples.tokens[..., None])[..., 0]
    scored, _ = score_image_tokens(stack.model, ids, mask, samples.tokens, sampling=SamplingConfig(cfg_scale=scale), **context)
    torch.testing.assert_close(scored, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(samples.logprobs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["plain", "truncated", "guided"])
def test_scored_logprobs_equal_the_samplers_and_carry_gradients(stack: PretrainedStack, sampling: SamplingConfig) -> None:
    samples, (ids, mask), context = draw(stack, sampling)
    logprobs, entropy = score_image_tokens(
        stack.model, ids, mask, samples.tokens, sampling=sampling, with_entropy=True, **context
    )
    torch.testing.assert_close(logprobs, samples.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, samples.entropy, atol=1e-5, rtol=0)
    logprobs.sum().backward()
    assert all(parameter.grad is not None for parameter in stack.model.parameters())  # nothing is carried along in vain
    stack.model.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_janus_draws_greedily_what_transformers_generates(janus: JanusStack, scale: float) -> None:
    tokenizer, options = janus.processor.tokenizer, janus.whole.generation_config
    options.bos_token_id, options.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    options.generation_kwargs = {"boi_token_id": tokenizer.boi_token_id}
    ids, mask = janus.encode_prompts(TEXTS)
    # Its generate() fails on a scale of 1, which is no guidance: there a scale a millionth above stands for it.
    asked = {"generation_mode": "image", "do_sample": False, "guidance_scale": max(scale, 1 + 1e-6)}
    theirs = janus.whole.generate(ids, attention_mask=mask, **asked)
    ours = janus.generate(TEXTS, sampling=SamplingConfig(top_k=1, cfg_scale=scale)).tokens
    assert torch.equal(ours, theirs)
    assert len(torch.unique(ours)) > 3  # not one token over and over


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 3.0])
def test_emu3_draws_greedily_what_transformers_generates(emu3: Emu3Stack, scale: float | None) -> None:
    height, width = emu3.grid()
    names, visual = emu3.whole.config.vocabulary_map, emu3.whole.vocabulary_mapping.image_tokens

    def allowed(row: int, ids: Tensor) -> list[int]:
        """What may follow, as the model's documentation constrains it: image tokens, and a forced one after every row."""
        offset = len(ids) - int((ids == names[OPEN]).nonzero()[0])
        closing = [names["<|extra_201|>"], names["<|image end|>"], names["<|im_end|>"]]
        if offset > height * (width + 1):
            return [closing[offset - height * (width + 1) - 1]]
        return [names[END_OF_ROW]] if offset % (width + 1) == 0 else visual

    ids, mask = emu3.encode_prompts(TEXTS)
    negative: dict[str, Any] = {}
    if scale is not None:
        negative_ids, negative_mask = emu3.negative_prompts(ids, mask)
        negative = {"negative_prompt_ids": negative_ids, "negative_prompt_attention_mask": negative_mask}
    theirs = emu3.whole.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=height * (width + 1) + 3,
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        guidance_scale=scale,
        **negative,
    )[:, ids.shape[1] :]
    ours = emu3.generate(TEXTS, sampling=SamplingConfig(top_k=1, cfg_scale=scale or 1.0))
    assert torch.equal(emu3_sequence(emu3, ours.tokens), theirs[:, :-3])
    assert len(torch.unique(ours.tokens)) > 3
    pixels = emu3.whole.decode_image_tokens(image_tokens=theirs, height=height, width=width)
    np.testing.assert_array_equal(ours.images, as_bytes(pixels))


def as_bytes(pixels: Tensor) -> np.ndarray:
    """[N, 3, H, W] about -1 to 1 → uint8 [N, H, W, 3]: times 127.5, plus 127.5, cut off, rounded down."""
    return np.clip((pixels.detach().numpy() + 1) * 127.5, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


@torch.no_grad()
def test_janus_decodes_as_its_own_model_does(janus: JanusStack) -> None:
    tokens = torch.arange(32).view(2, 16)
    expected = as_bytes(janus.whole.decode_image_tokens(tokens).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(janus.decode(tokens), expected)
    np.testing.assert_array_equal(janus.decode(tokens.view(2, 4, 4)), expected)


@torch.no_grad()
def test_encoding_gives_the_tokens_of_the_models_own_encoder(stack: PretrainedStack) -> None:
    height, width = stack.default_size
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    if isinstance(stack, JanusStack):
        expected = stack.whole.model.vqmodel.encode(pixels).image_tokens.view(2, 4, 4)
    else:
        expected = torch.stack(stack.whole.model.vqmodel.encode(pixels, torch.tensor([[24, 32]] * 2)).image_tokens)
    assert torch.equal(stack.encode(images), expected)


def test_janus_prompt_is_the_processors(janus: JanusStack) -> None:
    ids, mask = janus.encode_prompts(TEXTS)
    written = "<|im_start|><|User|>: a red sign\n\n<|Assistant|>:<begin_of_image>"
    tokenizer = janus.processor.tokenizer
    assert tokenizer.decode(ids[0][mask[0].bool()]) == written
    negative, negative_mask = janus.negative_prompts(ids, mask)
    kept = (negative != tokenizer.pad_token_id) & mask.bool()
    assert kept.sum(1).tolist() == [2, 2, 2]  # what begins a sentence and what opens the image
    assert torch.equal(negative_mask, mask)  # padding stands under the prompt's mask, as transformers has it


def test_emu3_prompt_is_the_processors(emu3: Emu3Stack) -> None:
    ids, mask = emu3.encode_prompts(TEXTS, (16, 40))
    assert emu3.processor.tokenizer.decode(ids[0][mask[0].bool()]) == "<|im_start|>a red sign<|image start|>2*5<|image token|>"
    assert emu3.model.row_length(ids) == 5
    negative, _ = emu3.negative_prompts(ids, mask, (16, 40))
    assert emu3.processor.tokenizer.decode(negative[1]) == "<|im_start|><|image start|>2*5<|image token|>"


def test_emu3_image_of_another_shape_has_rows_of_its_own(emu3: Emu3Stack) -> None:
    made = emu3.generate(["a red sign"], size=(16, 40), group_size=2)
    assert made.images.shape == (2, 16, 40, 3)
    ids, mask = emu3.encode_prompts(["a red sign"], (16, 40))
    logprobs, _ = score_image_tokens(emu3.model, ids, mask, made.tokens, group_size=2)
    torch.testing.assert_close(logprobs.detach(), made.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("end", ["", OPEN])
def test_emu3_prompt_without_its_size_is_refused(emu3: Emu3Stack, end: str) -> None:
    ids = emu3.processor.tokenizer(f"a sign{end}", return_tensors="pt").input_ids
    with pytest.raises(ValueError, match=r"must end with <\|image start\|>HEIGHT\*WIDTH<\|image token\|>"):
        emu3.model.row_length(ids)


def test_saved_stack_is_loaded_as_it_was(stack: PretrainedStack, tmp_path: Path) -> None:
    stack.save_pretrained(tmp_path)
    weights = {path.suffix for path in tmp_path.iterdir()} & {".safetensors", ".bin", ".pt", ".pth", ".pkl"}
    assert weights == {".safetensors"}
    again = type(stack).from_pretrained(tmp_path)
    assert again.weight_hashes() == stack.weight_hashes()
    assert again.default_size == stack.default_size
    one, other = (each.generate(TEXTS, seed=3) for each in (stack, again))
    assert torch.equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.images, other.images)


def test_folder_without_weights_is_named(stack: PretrainedStack, tmp_path: Path) -> None:
    with pytest.raises(StackError, match=f"no {stack.kind} model at .*config.json and model.safetensors"):
        type(stack).from_pretrained(tmp_path)
    stack.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(StackError, match=f"can't be loaded as {stack.kind}, a file is missing or damaged"):
        type(stack).from_pretrained(tmp_path)


def test_input_that_does_not_fit_is_refused(stack: PretrainedStack) -> None:
    mark = "<begin_of_image>" if isinstance(stack, JanusStack) else OPEN
    with pytest.raises(StackError, match="would not read as text"):
        stack.encode_prompts([f"a sign {mark}"])
    with pytest.raises(StackError, match="no prompts given"):
        stack.encode_prompts([])
    with pytest.raises(StackError, match="leaves room for"):
        stack.encode_prompts(["a sign " * 200])
    with pytest.raises(StackError, match=r"positions, but the model has \d+: make it smaller|draws .* and no other size"):
        stack.encode_prompts(["a sign"], (stack.token_size * 200, stack.token_size * 200))
    with pytest.raises(StackError, match=r"20x32"):
        stack.encode_prompts(["a sign"], (20, 32))
    with pytest.raises(StackError, match="3 tokens don't fill"):
        stack.decode(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(StackError, match="must be 0 to 63"):
        stack.decode(torch.full((1, *stack.grid()), 64))
    with pytest.raises(StackError, match="uint8"):
        stack.encode(np.zeros((1, 32, 32, 3)))


def test_sampler_refuses_more_tokens_than_it_was_made_for(stack: PretrainedStack) -> None:
    ids, mask = stack.encode_prompts(TEXTS)
    sampler = stack.model.image_sampler(ids, mask, 2)
    sampler.append(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"tokens must be \[3\], not \[2\]"):
        sampler.append(torch.zeros(2, dtype=torch.int64))
    sampler.append(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="all 2 tokens are there already"):
        sampler.append(torch.zeros(3, dtype=torch.int64))


def test_families_are_found_by_name() -> None:
    assert families.names() == ["emu3", "janus", "xomni"]
    assert families.get("xomni") is Stack
    with pytest.raises(UnknownNameError, match='unknown model family "jannus"; nearest: janus'):
        families.get("jannus")
