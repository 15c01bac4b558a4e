"""The fast path: what stepping through whole episodes does, in one call per part.

`rollout` samples, decodes and scores a batch of groups. `TextToImageEnv` and `TextToImageVectorEnv` do the same one
token at a time; a test proves that both give the same tokens, log-probabilities and rewards.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeResult, CompositeReward
from xomni_rl.stack.family import ImageStack
from xomni_rl.stack.generation import decode_tokens, image_sizes, sample_tokens
from xomni_rl.stack.sampler import PADDING, SamplingConfig


@dataclass
class RolloutBatch:
    """N sampled token sequences with their images and rewards; N = P · group_size, group-major.

    Rows p·G … p·G + G - 1 are the group of prompt p.

    Args:
        prompts: N prompts (a group repeats its own).
        group: int64 [N], the position of the row's prompt.
        input_ids: int64 [P, L], left padded.
        attention_mask: int64 [P, L], 1 = a real token.
        negative_ids: int64 [P, L'], the prompt that guidance moves away from; None without guidance.
        negative_mask: int64 [P, L'].
        group_size: G.
        tokens: int64 [N, T] in [0, image_vocab); the row of an image that is smaller than others ends with `PADDING`.
        old_logprobs: float32 [N, T], nats, under the distribution sampled from; constant; 0 at padding.
        entropy: float32 [N, T], nats, of that distribution; 0 at padding.
        images: uint8 [N, H, W, 3]; of several sizes, object [N] of uint8 [H, W, 3].
        rewards: N rows of component scores.
        times: seconds spent in "sample", "decode" and "reward".
        greedy: float32 [N, K], what the image of each row's prompt scores whose every token is the likeliest one; None unless
            an algorithm wants it.
    """

    prompts: list[Prompt]
    group: np.ndarray
    input_ids: Tensor
    attention_mask: Tensor
    negative_ids: Tensor | None
    negative_mask: Tensor | None
    group_size: int
    tokens: Tensor
    old_logprobs: Tensor
    entropy: Tensor
    images: np.ndarray
    rewards: CompositeResult
    times: dict[str, float]
    greedy: np.ndarray | None = None

    @property
    def loss_mask(self) -> Tensor:
        """[N, T] bool, True where there is a token."""
        return self.tokens != PADDING


def rollout(
    stack: ImageStack,
    prompts: Sequence[Prompt],
    reward: CompositeReward,
    *,
    group_size: int,
    seed: int,
    sampling: SamplingConfig | None = None,
    size: tuple[int, int] | None = None,
    indices: Sequence[int] | None = None,
) -> RolloutBatch:
    """Samples `group_size` images for each of P prompts and scores them; the prompts may be of several sizes.

    Args:
        stack: the generative stack.
        prompts: P prompts.
        reward: scores the N = P · group_size images in one call.
        group_size: G, images per prompt.
        seed: with the prompt's id and the row's index it fixes the row's random stream, whatever the batch.
        sampling: the distribution to sample from; None = the model's own.
        size: (height, width) in px of all images; None = each prompt's own, else the stack's default.
        indices: N stream indices; None = 0 … G - 1 in each group, going on where a prompt id occurs again.
    Returns: the batch.
    Raises: ValueError for no prompts, a group size below 1 or a wrong number of indices; StackError for a bad size or a
        prompt that is too long; RewardError if scoring fails and the reward's policy is to stop.
    """
    if not prompts or group_size < 1:
        raise ValueError(f"at least one prompt and a group size of 1 are needed, got {len(prompts)} and {group_size}")
    rows = [prompt for prompt in prompts for _ in range(group_size)]
    streams = stream_indices(prompts, group_size) if indices is None else list(indices)
    if len(streams) != len(rows):
        raise ValueError(f"indices must have one entry per image, got {len(streams)} for {len(rows)} images")
    sizes = image_sizes(stack, prompts, size)
    times: dict[str, float] = {}
    with _timed(times, "sample"):
        texts, keys = [prompt.text for prompt in prompts], [prompt.id for prompt in prompts]
        sampled = sample_tokens(stack, texts, keys, sizes, streams, group_size=group_size, seed=seed, sampling=sampling)
    with _timed(times, "decode"):
        row_sizes = [each for each in sizes for _ in range(group_size)]
        images = decode_tokens(stack, sampled.tokens, row_sizes, [prompt.text for prompt in rows])
    group = np.repeat(np.arange(len(prompts), dtype=np.int64), group_size)
    # The trainer's mixed precision is the policy's; besides, it would reach only the rewards scored in this very thread.
    with _timed(times, "reward"), torch.autocast(sampled.tokens.device.type, enabled=False):
        rewards = reward(images, rows, group)
    return RolloutBatch(
        prompts=rows,
        group=group,
        input_ids=sampled.input_ids,
        attention_mask=sampled.attention_mask,
        negative_ids=sampled.negative_ids,
        negative_mask=sampled.negative_mask,
        group_size=group_size,
        tokens=sampled.tokens,
        old_logprobs=sampled.logprobs,
        entropy=sampled.entropy,
        images=images,
        rewards=rewards,
        times=times,
    )


def stream_indices(prompts: Sequence[Prompt], group_size: int) -> list[int]:
    """Random-stream index of each of the P · group_size rows; a prompt id that occurs again goes on counting.

    >>> from xomni_rl.prompts import Prompt
    >>> stream_indices([Prompt("a", "A"), Prompt("b", "B"), Prompt("a", "A")], group_size=2)
    [0, 1, 0, 1, 2, 3]
    """
    seen: Counter[str] = Counter()
    indices: list[int] = []
    for prompt in prompts:
        indices += range(seen[prompt.id], seen[prompt.id] + group_size)
        seen[prompt.id] += group_size
    return indices


def negative_prompts(
    stack: ImageStack, input_ids: Tensor, attention_mask: Tensor, sampling: SamplingConfig, size: tuple[int, int]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Ids and mask [P, L'] of the prompts that guidance moves away from; None, None when guidance is off."""
    return stack.negative_prompts(input_ids, attention_mask, size) if sampling.guided else (None, None)


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():  # kernels run asynchronously; the next part must not pay for this one
        torch.cuda.synchronize()
    times[name] = time.perf_counter() - start
