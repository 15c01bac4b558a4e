"""Prompts → images, for a stack of any family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from xomni_rl.prompts import Prompt

from .family import ImageStack
from .sampler import SamplingConfig, sample_image_tokens, sample_uniforms


@dataclass(frozen=True)
class Generation:
    """Generated images and how they came about.

    Attributes:
        images: uint8 [N, H, W, 3].
        tokens: [N, T] int64.
        logprobs: [N, T] float32 nats, under the distribution sampled from.
        entropy: [N, T] float32 nats.
    """

    images: np.ndarray
    tokens: Tensor
    logprobs: Tensor
    entropy: Tensor


def generate(
    stack: ImageStack,
    prompts: Sequence[str | Prompt],
    *,
    size: tuple[int, int] | None = None,
    group_size: int = 1,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    on_tokens: Callable[[Tensor], None] | None = None,
) -> Generation:
    """Generates images.

    Args:
        stack: draws them.
        prompts: P texts or prompts.
        size: (height, width) px of all of them.
        group_size: G images a prompt; N = P·G, group-major.
        seed: same seed, prompt and index, same image, whatever the batch.
        sampling: temperature, truncation, guidance.
        on_tokens: given the N tokens of every step as soon as they are drawn.
    Raises: StackError for input the stack can't take.
    """
    sampling = sampling or SamplingConfig()
    texts = [prompt.text if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    keys = [prompt.id if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    ids, mask = stack.encode_prompts(texts, size)
    negative_ids, negative_mask = stack.negative_prompts(ids, mask, size) if sampling.guided else (None, None)
    height, width = stack.grid(size)
    rows, indices = [key for key in keys for _ in range(group_size)], list(range(group_size)) * len(keys)
    samples = sample_image_tokens(
        stack.model,
        ids,
        mask,
        height * width,
        **vars(sampling),
        uniforms=sample_uniforms(seed, rows, indices, height * width),
        group_size=group_size,
        negative_ids=negative_ids,
        negative_mask=negative_mask,
        on_tokens=on_tokens,
    )
    images = stack.decode(samples.tokens, size, [text for text in texts for _ in range(group_size)])
    return Generation(images, samples.tokens, samples.logprobs, samples.entropy)
