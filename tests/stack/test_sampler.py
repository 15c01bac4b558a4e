import pytest
import torch

from xomni_rl.stack.sampler import (
    IncrementalSampler,
    SamplingConfig,
    image_token_logprobs,
    sample_image_tokens,
    sample_uniforms,
    score_image_tokens,
)
from xomni_rl.stack.stack import Stack

PROMPTS = ['a red sign that says "K7AX"', "blue", '"2345" written on a teal sign']
SETTINGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.7, top_k=40, top_p=0.9),
    SamplingConfig(min_p=0.03),
    SamplingConfig(cfg_scale=1.5),
]


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack.tiny_random(seed=0)


def draw(stack: Stack, sampling: SamplingConfig, prompts: list[str], group_size: int, num_tokens: int = 48):
    ids, mask = stack.encode_prompts(prompts)
    negative_ids, negative_mask = stack.encode_negative(len(prompts))
    uniforms = sample_uniforms(
        0, [p for p in prompts for _ in range(group_size)], list(range(group_size)) * len(prompts), num_tokens
    )
    context = {"group_size": group_size, "negative_ids": negative_ids, "negative_mask": negative_mask}
    samples = sample_image_tokens(stack.model, ids, mask, num_tokens, **vars(sampling), uniforms=uniforms, **context)
    return samples, (ids, mask), context


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_scored_logprobs_equal_the_samplers(stack: Stack, sampling: SamplingConfig) -> None:
    samples, (ids, mask), context = draw(stack, sampling, PROMPTS, group_size=4)
    wanted = {"sampling": sampling, "with_entropy": True}
    logprobs, entropies = score_image_tokens(stack.model, ids, mask, samples.tokens, **wanted, **context)
    torch.testing.assert_close(logprobs, samples.logprobs, atol=1e-4, rtol=0)
    torch.testing.assert_close(entropies, samples.entropy, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logprobs_equal_a_plain_pass_over_the_whole_sequence(stack: Stack) -> None:
    samples, (ids, mask), _ = draw(stack, SamplingConfig(), PROMPTS, group_size=2)
    full = torch.cat([ids.repeat_interleave(2, 0), samples.tokens + stack.model.config.vocab_size], 1)
    full_mask = torch.cat([mask.repeat_interleave(2, 0), torch.ones_like(samples.tokens)], 1)
    logits = stack.model(full, full_mask, modality="image").logits[:, ids.shape[1] - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, samples.tokens[..., None])[..., 0]
    torch.testing.assert_close(samples.logprobs, expected, atol=1e-4, rtol=0)


def test_logprobs_alone_equal_the_scored_ones(stack: Stack) -> None:
    samples, (ids, mask), _ = draw(stack, SamplingConfig(), PROMPTS, group_size=2)
    scored, _ = score_image_tokens(stack.model, ids, mask, samples.tokens, group_size=2)
    alone = image_token_logprobs(stack.model, ids, mask, samples.tokens, group_size=2)
    torch.testing.assert_close(alone, scored, atol=1e-5, rtol=0)


def test_cutting_the_batch_another_way_gives_the_same_tokens(stack: Stack) -> None:
    together, _, _ = draw(stack, SamplingConfig(), PROMPTS, group_size=3)
    for i, prompt in enumerate(PROMPTS):
        alone, _, _ = draw(stack, SamplingConfig(), [prompt], group_size=3)
        assert torch.equal(alone.tokens, together.tokens[3 * i : 3 * i + 3])


def test_gradient_through_the_shared_prompt_equals_the_plain_one(stack: Stack) -> None:
    samples, (ids, mask), _ = draw(stack, SamplingConfig(), PROMPTS, group_size=2)
    parameter = stack.model.model.layers[1].self_attn.k_proj.weight
    stack.model.zero_grad()
    score_image_tokens(stack.model, ids, mask, samples.tokens, group_size=2)[0].sum().backward()
    shared = parameter.grad.clone()
    stack.model.zero_grad()
    full = torch.cat([ids.repeat_interleave(2, 0), samples.tokens + stack.model.config.vocab_size], 1)
    full_mask = torch.cat([mask.repeat_interleave(2, 0), torch.ones_like(samples.tokens)], 1)
    logits = stack.model(full, full_mask, modality="image").logits[:, ids.shape[1] - 1 : -1]
    logits.log_softmax(-1).gather(-1, samples.tokens[..., None]).sum().backward()
    stack_gradient = parameter.grad.clone()
    stack.model.zero_grad()
    torch.testing.assert_close(shared, stack_gradient, atol=1e-3, rtol=1e-4)


def test_generator_makes_sampling_repeatable(stack: Stack) -> None:
    ids, mask = stack.encode_prompts(PROMPTS)
    first, second, other = (
        sample_image_tokens(stack.model, ids, mask, 8, generator=torch.Generator().manual_seed(seed)).tokens
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_guidance_without_a_negative_prompt_says_so(stack: Stack) -> None:
    ids, mask = stack.encode_prompts(PROMPTS)
    with pytest.raises(ValueError, match="negative_ids"):
        sample_image_tokens(stack.model, ids, mask, 4, cfg_scale=2.0)


def test_context_longer_than_the_model_says_how_long(stack: Stack) -> None:
    ids, mask = stack.encode_prompts(PROMPTS)
    with pytest.raises(ValueError, match="512 positions"):
        sample_image_tokens(stack.model, ids, mask, 600)


def test_right_padding_is_refused(stack: Stack) -> None:
    ids, mask = stack.encode_prompts(PROMPTS)
    with pytest.raises(ValueError, match="left"):
        sample_image_tokens(stack.model, ids, mask.flip(1), 4)


def test_one_token_too_many_is_refused(stack: Stack) -> None:
    ids, mask = stack.encode_prompts(["a"])
    sampler = IncrementalSampler(stack.model, ids, mask, 1)
    sampler.append(torch.tensor([0]))
    with pytest.raises(ValueError, match="all 1 tokens"):
        sampler.append(torch.tensor([0]))


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_scoring_a_piece_at_a_time_gives_the_same_numbers_and_gradients(
    stack: Stack, sampling: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, (ids, mask), context = draw(stack, sampling, PROMPTS, group_size=2)

    def scored() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        stack.model.zero_grad()
        wanted = {"sampling": sampling, "with_entropy": True}
        logprobs, entropies = score_image_tokens(stack.model, ids, mask, samples.tokens, **wanted, **context)
        (logprobs.sum() + 0.1 * entropies.sum()).backward()
        return logprobs.detach(), entropies.detach(), [p.grad.clone() for p in stack.model.parameters() if p.grad is not None]

    whole = scored()
    monkeypatch.setattr("xomni_rl.stack.sampler.LOGITS_AT_A_TIME", 512 * 50)  # 288 tokens of 512 logits: six pieces
    pieces = scored()
    torch.testing.assert_close(pieces[0], whole[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(pieces[1], whole[1], atol=1e-5, rtol=0)
    for piece, all_at_once in zip(pieces[2], whole[2], strict=True):
        torch.testing.assert_close(piece, all_at_once, atol=1e-3, rtol=1e-4)


def test_most_logits_in_memory_do_not_grow_with_the_tokens(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, (ids, mask), _ = draw(stack, SamplingConfig(), PROMPTS, group_size=2)
    monkeypatch.setattr("xomni_rl.stack.sampler.LOGITS_AT_A_TIME", 512 * 50)
    largest = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for score in (score_image_tokens, image_token_logprobs):
            found = score(stack.model, ids, mask, samples.tokens, group_size=2)
            (found[0] if isinstance(found, tuple) else found).sum().backward()
    # 6 images of 48 tokens have 147,456 logits; what is kept for the backward pass is a layer's activations and weights
    assert largest < 6 * 48 * 512
