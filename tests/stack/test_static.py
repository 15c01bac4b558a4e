"""The compiled step against the lean pass: the same tokens and log-probabilities, nothing compiled twice, nothing copied.

torch.compile's backend "eager" traces as every backend does and computes with PyTorch; CUDA graphs need a GPU and are not run.
"""

import pytest
import torch
from torch import Tensor

from xomni_rl.config import compose
from xomni_rl.experiments.run import load_stack
from xomni_rl.policies.lora import add_adapters
from xomni_rl.stack.families.janus import JanusStack
from xomni_rl.stack.sampler import IncrementalSampler, Samples, SamplingConfig, sample_image_tokens
from xomni_rl.stack.stack import Stack, StackError
from xomni_rl.stack.static import PROMPT_BLOCK, StaticSampler, compile_sampling, next_logits

PROMPTS = ['a red sign that says "K7AX"', "blue", '"2345" written on a teal sign']
SETTINGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.7, top_k=40, top_p=0.9),
    SamplingConfig(cfg_scale=1.5),
]


@pytest.fixture
def stack() -> Stack:
    return Stack.tiny_random(seed=0)


def draw(stack: Stack, sampling: SamplingConfig, prompts: list[str] = PROMPTS, num_tokens: int = 20) -> Samples:
    """Two images a prompt, by the model's own sampler."""
    ids, mask = stack.encode_prompts(prompts)
    negative_ids, negative_mask = stack.encode_negative(len(prompts))
    context = {"group_size": 2, "negative_ids": negative_ids, "negative_mask": negative_mask}
    generator = torch.Generator().manual_seed(1)  # at 0 a number is 1e-7 from the edge between two tokens
    return sample_image_tokens(stack.model, ids, mask, num_tokens, generator=generator, **vars(sampling), **context)


def assert_same(found: Samples, expected: Samples) -> None:
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=5e-5, rtol=0)
    torch.testing.assert_close(found.entropy, expected.entropy, atol=5e-5, rtol=0)


def graphs() -> int:
    """How many the compiler has made in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("backend", "sampling"), [*(("eager", each) for each in SETTINGS), ("aot_eager", SETTINGS[2])])
def test_compiled_step_gives_the_same_tokens_and_logprobs(stack: Stack, backend: str, sampling: SamplingConfig) -> None:
    expected = draw(stack, sampling)
    compile_sampling(stack.model, backend)
    assert_same(draw(stack, sampling), expected)


@pytest.mark.slow
def test_inductors_step_gives_the_same_tokens_and_logprobs(stack: Stack) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("inductor needs a C++ compiler")
    expected = [draw(stack, sampling) for sampling in SETTINGS]
    compile_sampling(stack.model)
    for sampling, each in zip(SETTINGS, expected, strict=True):
        assert_same(draw(stack, sampling), each)


def test_step_that_is_not_compiled_gives_the_same_distribution_at_every_token(stack: Stack) -> None:
    ids, mask = stack.encode_prompts(PROMPTS)
    lean, fixed = IncrementalSampler(stack.model, ids, mask, 9), StaticSampler(stack.model, ids, mask, 9)
    for token in torch.randint(0, 512, (9, 3), generator=torch.Generator().manual_seed(0)):
        torch.testing.assert_close(fixed.logprobs(), lean.logprobs(), atol=5e-5, rtol=0)
        lean.append(token)
        fixed.append(token)
    with pytest.raises(ValueError, match="all 9 tokens"):
        fixed.append(token)


def test_step_is_compiled_once_for_prompts_of_about_a_length_and_after_an_update(stack: Stack) -> None:
    torch._dynamo.reset()  # what earlier tests compiled
    compile_sampling(stack.model, "eager")
    short, long = (stack.encode_prompts(texts)[0].shape[1] for texts in (["blue", "red", "a"], PROMPTS))
    assert short < long <= PROMPT_BLOCK
    draw(stack, SamplingConfig())
    before = graphs()
    draw(stack, SamplingConfig(temperature=0.5), ["blue", "red", "a"])
    with torch.no_grad():
        for parameter in stack.model.parameters():
            parameter.mul_(1.1)
    changed = draw(stack, SamplingConfig())
    assert graphs() == before
    stack.model.sampling_backend = None
    assert_same(changed, draw(stack, SamplingConfig()))  # of the weights as they are now
    compile_sampling(stack.model, "eager")
    draw(stack, SamplingConfig(cfg_scale=2.0))  # with a negative prompt twice the rows: a shape of its own
    assert graphs() == before + 1


def test_adapters_are_computed_in_the_compiled_step(stack: Stack) -> None:
    add_adapters(stack.model, rank=2, seed=0)
    with torch.no_grad():
        for name, parameter in stack.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    expected = draw(stack, SamplingConfig())
    compile_sampling(stack.model, "eager")
    assert_same(draw(stack, SamplingConfig()), expected)


def test_two_samplers_at_a_time_have_caches_of_their_own_and_leave_them_to_later_ones(stack: Stack) -> None:
    ids, mask = stack.encode_prompts(PROMPTS)
    first, second = StaticSampler(stack.model, ids, mask, 4), StaticSampler(stack.model, ids[:1], mask[:1], 4)
    alone = IncrementalSampler(stack.model, ids, mask, 4)
    for sampler in (first, alone):
        sampler.append(torch.tensor([1, 2, 3]))
    second.append(torch.tensor([7]))
    for sampler in (first, alone):
        sampler.append(torch.tensor([4, 5, 6]))
    torch.testing.assert_close(first.logits(), alone.logits(), atol=5e-5, rtol=0)
    places = {sampler.keys[0].data_ptr() for sampler in (first, second)}
    assert len(places) == 2
    del first, second, sampler
    assert {StaticSampler(stack.model, ids, mask, 3).keys[0].data_ptr()} <= places


@torch.no_grad()
def test_weights_and_cache_are_at_fixed_places_for_cuda_graphs_and_only_small_inputs_move(stack: Stack) -> None:
    moving: dict[str, tuple[int, ...]] = {}

    def look(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
        for node, value in zip(nodes, inputs, strict=True):
            if node.meta["tensor_dict"].get("_dynamo_static_input_type") is None:
                moving[node.name.strip("_").removeprefix("l_")] = tuple(value.shape)
        return graph

    ids, mask = stack.encode_prompts(PROMPTS)
    sampler = StaticSampler(stack.model, ids, mask, 4)
    step = torch.compile(next_logits, fullgraph=True, dynamic=False, backend=look)
    inputs = (sampler.keys, sampler.values, sampler.seen, sampler.offset, sampler.slot, torch.tensor([1, 2, 3]))
    step(stack.model, *inputs)
    # 32 slots for the prompt and 4 for tokens are 36, 40 in multiples of 8
    assert moving == {"tokens": (3,), "seen": (3, 40), "slot": (1,), "offset": (3,)}


def test_configuration_asks_for_a_compiled_step() -> None:
    settings = compose(["model.path=tiny_random"]).model
    assert load_stack(settings).model.sampling_backend is None
    settings.compile = True
    assert load_stack(settings).model.sampling_backend == "inductor"


def test_model_of_another_family_is_refused() -> None:
    with pytest.raises(StackError, match=r"sampling of .* is not compiled, that of X-Omni alone is"):
        compile_sampling(JanusStack.tiny_random().model)


def test_backend_that_cannot_compile_is_one_sentence(stack: Stack) -> None:
    compile_sampling(stack.model, "no_such_backend")
    with pytest.raises(StackError, match=r"cannot be compiled here .*; leave `compile` off") as error:
        draw(stack, SamplingConfig())
    assert "\n" not in str(error.value)
