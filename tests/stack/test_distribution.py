import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from xomni_rl.stack.distribution import (
    SamplingConfig,
    draw_tokens,
    entropy,
    guide,
    sample_uniforms,
    sampling_logprobs,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20), st.floats(0.05, 1.0), st.floats(0.0, 0.5), st.floats(0.3, 2.0), st.integers(0, 10_000))
def test_truncation_equals_transformers_processors(
    top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    logits = 3 * torch.randn(4, 24, generator=torch.Generator().manual_seed(seed))
    scores = logits / temperature
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        # Which side of top_p a token lies on is rounding where a cumulative probability equals it to float32's precision.
        cumulative = scores.double().softmax(-1).sort(descending=True).values.cumsum(-1)
        assume((cumulative - top_p).abs().min() > 1e-6)
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(None, scores)
    ours = sampling_logprobs(logits, SamplingConfig(temperature, top_k, top_p, min_p))
    torch.testing.assert_close(ours, scores.log_softmax(-1), atol=1e-5, rtol=0)


def test_chosen_token_outside_the_support_keeps_a_finite_logprob() -> None:
    # Kept by top_k=1: the first token; chosen: the last. Both remain: p = e^0 / (e^2 + e^0).
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    logprobs = sampling_logprobs(logits, SamplingConfig(top_k=1), chosen=torch.tensor([2]))
    assert logprobs[0, 2].item() == pytest.approx(-math.log(math.exp(2) + 1), abs=1e-6)
    assert logprobs[0, 1].item() == -math.inf


def test_guidance_of_one_is_the_conditional_distribution() -> None:
    conditional, negative = torch.randn(2, 5), torch.randn(2, 5)
    torch.testing.assert_close(guide(conditional, negative, 1.0), conditional)


def test_entropy_of_a_uniform_over_four_is_log_four() -> None:
    logprobs = torch.tensor([[math.log(0.25)] * 4 + [-math.inf]])
    assert entropy(logprobs).item() == pytest.approx(math.log(4), abs=1e-6)


def test_draws_invert_the_cumulative_distribution() -> None:
    # p = 0.2, 0, 0.5, 0.3: cumulative 0.2, 0.2, 0.7, 1.0
    logprobs = torch.tensor([0.2, 0.0, 0.5, 0.3]).log().expand(5, 4)
    drawn = draw_tokens(logprobs, torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71], dtype=torch.float64))
    assert drawn.tolist() == [0, 0, 2, 2, 3]


def test_draws_follow_the_distribution() -> None:
    p = torch.tensor([0.5, 0.25, 0.0, 0.2, 0.05])
    uniforms = sample_uniforms(0, ["p"] * 1000, list(range(1000)), 20).flatten()
    share = torch.bincount(draw_tokens(p.log().expand(len(uniforms), 5), uniforms), minlength=5) / len(uniforms)
    # standard error of a share is at most sqrt(0.25 / 20000) = 0.0035
    assert (share - p).abs().max() < 0.015
    assert share[2] == 0


def test_streams_depend_on_seed_prompt_and_index_alone() -> None:
    both = sample_uniforms(3, ["a", "b"], [0, 4], 7)
    assert torch.equal(both[1], sample_uniforms(3, ["b"], [4], 7)[0])
    others = [(3, "b", 5), (3, "a", 4), (4, "b", 4)]
    assert all(not torch.equal(both[1], sample_uniforms(s, [p], [i], 7)[0]) for s, p, i in others)
    assert torch.equal(sample_uniforms(3, ["a"], [0], 3)[0], both[0, :3])


@pytest.mark.parametrize(
    ("setting", "value"), [("temperature", 0.0), ("top_k", -1), ("top_p", 0.0), ("min_p", 1.0), ("cfg_scale", -1.0)]
)
def test_setting_out_of_range_is_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        SamplingConfig(**{setting: value})


def test_mismatched_shapes_are_printed() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3,\)"):
        draw_tokens(torch.zeros(2, 3), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="2 prompt ids, but 1 indices"):
        sample_uniforms(0, ["a", "b"], [0], 2)
    assert np.isfinite(sample_uniforms(0, [], [], 2).numpy()).all()
