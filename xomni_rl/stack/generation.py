"""Prompts → images, for a stack of any family; prompts of several sizes are drawn size by size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from xomni_rl.images import as_image_array
from xomni_rl.prompts import Prompt

from .family import ImageStack
from .sampler import PADDING, Samples, SamplingConfig, sample_image_tokens, sample_uniforms
from .stack_folder import StackError

Size = tuple[int, int]
"""(height, width) px."""


@dataclass(frozen=True)
class Generation:
    """Generated images and how they came about.

    Attributes:
        images: uint8 [N, H, W, 3]; of several sizes, object [N] of uint8 [H, W, 3].
        tokens: [N, T] int64; the row of an image that is smaller than others ends with `PADDING`.
        logprobs: [N, T] float32 nats, under the distribution sampled from; 0 at padding.
        entropy: [N, T] float32 nats; 0 at padding.
    """

    images: np.ndarray
    tokens: Tensor
    logprobs: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class Sampled:
    """The image tokens of N = P·G rows, group-major, and the P prefixes that they follow.

    Attributes:
        input_ids, attention_mask: [P, L], left padded.
        negative_ids, negative_mask: [P, L'], what guidance moves away from; None without guidance.
        tokens, logprobs, entropy: [N, T], as in `Generation`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    negative_ids: Tensor | None
    negative_mask: Tensor | None
    tokens: Tensor
    logprobs: Tensor
    entropy: Tensor


def check_room(texts: Sequence[str], lengths: Sequence[int], grid: tuple[int, int], image_length: int, positions: int) -> None:
    """Prompts and an image after each must fit the model's context.

    Args:
        texts: P prompts.
        lengths: their tokens.
        grid: (h, w) of the image, for messages.
        image_length: positions that it takes.
        positions: of the model.
    Raises: StackError for an image that fills the context by itself, or naming the longest prompt.
    """
    image, room = f"an image of {grid[0]}x{grid[1]} tokens", positions - image_length
    if room < 1:
        raise StackError(f"{image} takes {image_length} positions, but the model has {positions}: make it smaller")
    longest = max(range(len(texts)), key=lambda index: lengths[index])
    if lengths[longest] > room:
        raise StackError(
            f"prompt {longest} has {lengths[longest]} tokens, but {image} leaves room for {room} of the model's {positions} "
            f"positions: shorten it or make the image smaller ({texts[longest][:60]!r}…)"
        )


def generate(
    stack: ImageStack,
    prompts: Sequence[str | Prompt],
    *,
    size: Size | None = None,
    group_size: int = 1,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    on_tokens: Callable[[Tensor], None] | None = None,
) -> Generation:
    """Generates images.

    Args:
        stack: draws them.
        prompts: P texts or prompts.
        size: (height, width) px of all of them; None = each prompt's own, else the stack's default.
        group_size: G images a prompt; N = P·G, group-major.
        seed: same seed, prompt and index, same image, whatever the batch.
        sampling: temperature, truncation, guidance.
        on_tokens: given N tokens at every step as soon as they are drawn. Of several sizes one is drawn after the other, and
            rows that are not drawn at a step have `PADDING`.
    Raises: StackError for input the stack can't take.
    """
    sizes = image_sizes(stack, prompts, size)
    texts = [prompt.text if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    keys = [prompt.id if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    indices = list(range(group_size)) * len(texts)
    sampled = sample_tokens(
        stack, texts, keys, sizes, indices, group_size=group_size, seed=seed, sampling=sampling, on_tokens=on_tokens
    )
    of_rows = [(size, text) for size, text in zip(sizes, texts, strict=True) for _ in range(group_size)]
    images = decode_tokens(stack, sampled.tokens, [size for size, _ in of_rows], [text for _, text in of_rows])
    return Generation(images, sampled.tokens, sampled.logprobs, sampled.entropy)


def image_sizes(stack: ImageStack, prompts: Sequence[str | Prompt], size: Size | None = None) -> list[Size]:
    """(height, width) px of each prompt's image: the size asked for, else the prompt's own, else the stack's default.

    Raises: StackError for one that the stack cannot draw.
    """
    own = [prompt.size if isinstance(prompt, Prompt) else None for prompt in prompts]
    sizes = [size or each or stack.default_size for each in own]
    for each in dict.fromkeys(sizes):
        stack.grid(each)
    return sizes


def sample_tokens(
    stack: ImageStack,
    texts: Sequence[str],
    keys: Sequence[str],
    sizes: Sequence[Size],
    indices: Sequence[int],
    *,
    group_size: int,
    seed: int,
    sampling: SamplingConfig | None = None,
    on_tokens: Callable[[Tensor], None] | None = None,
) -> Sampled:
    """Samples the image tokens of prompts; those of one size are one batch.

    Args:
        stack: its model samples.
        texts: P prompts.
        keys: P; with the seed and a row's index they decide its random stream.
        sizes: P.
        indices: N, group-major.
        group_size, seed, sampling, on_tokens: as in `generate`.
    Raises: StackError for input the stack can't take.
    """
    sampling, parts = sampling or SamplingConfig(), _places(sizes)
    sampled = []
    for size, chosen in parts.items():
        rows = [place * group_size + index for place in chosen for index in range(group_size)]
        one_size = partial(_sample_one_size, stack, size, group_size, sampling)
        uniforms = partial(sample_uniforms, seed, [keys[row // group_size] for row in rows], [indices[row] for row in rows])
        show = on_tokens if on_tokens is None or len(parts) == 1 else partial(_among_all, on_tokens, len(indices), rows)
        sampled.append(one_size([texts[place] for place in chosen], uniforms, show))
    if not sampled:
        stack.encode_prompts([])  # says that there are none
    return sampled[0] if len(sampled) == 1 else _in_order(sampled, list(parts.values()), group_size)


def decode_tokens(stack: ImageStack, tokens: Tensor, sizes: Sequence[Size], texts: Sequence[str]) -> np.ndarray:
    """Pixels of tokens [N, T] of N sizes and prompts; shaped as `Generation.images`."""
    images: dict[int, np.ndarray] = {}
    for size, rows in _places(sizes).items():
        height, width = stack.grid(size)
        made = stack.decode(tokens[rows, : height * width], size, [texts[row] for row in rows])
        images |= dict(zip(rows, made, strict=True))
    return as_image_array([images[row] for row in range(len(sizes))])


def right_padded(parts: Sequence[Tensor], value: float = 0) -> Tensor:
    """Rows [n, T] of several tensors under each other: [N, T] of the longest."""
    length = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, length - part.shape[1]), value=value) for part in parts])


def left_padded(parts: Sequence[Tensor]) -> Tensor:
    """Rows [p, L] of several tensors under each other; what is padded is masked, so its id does not matter."""
    length = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (length - part.shape[1], 0)) for part in parts])


def _places(sizes: Sequence[Size]) -> dict[Size, list[int]]:
    """Where each size stands."""
    places: dict[Size, list[int]] = {}
    for place, size in enumerate(sizes):
        places.setdefault(tuple(size), []).append(place)  # type: ignore[arg-type]
    return places


def _sample_one_size(
    stack: ImageStack,
    size: Size,
    group_size: int,
    sampling: SamplingConfig,
    texts: Sequence[str],
    uniforms: Callable[[int], Tensor],
    on_tokens: Callable[[Tensor], None] | None,
) -> Sampled:
    ids, mask = stack.encode_prompts(texts, size)
    negative_ids, negative_mask = stack.negative_prompts(ids, mask, size) if sampling.guided else (None, None)
    height, width = stack.grid(size)
    samples: Samples = sample_image_tokens(
        stack.model,
        ids,
        mask,
        height * width,
        **vars(sampling),
        uniforms=uniforms(height * width),
        group_size=group_size,
        negative_ids=negative_ids,
        negative_mask=negative_mask,
        on_tokens=on_tokens,
    )
    return Sampled(ids, mask, negative_ids, negative_mask, samples.tokens, samples.logprobs, samples.entropy)


def _among_all(on_tokens: Callable[[Tensor], None], count: int, rows: Sequence[int], tokens: Tensor) -> None:
    """Hands over some rows' tokens as those of all `count` rows."""
    everyones = tokens.new_full((count,), PADDING)
    everyones[list(rows)] = tokens
    on_tokens(everyones)


def _in_order(parts: Sequence[Sampled], places: Sequence[Sequence[int]], group_size: int) -> Sampled:
    """Prompts of several sizes as one batch, each at its place."""
    device = parts[0].tokens.device
    order = torch.argsort(torch.tensor([place for chosen in places for place in chosen], device=device))
    rows = (order[:, None] * group_size + torch.arange(group_size, device=device)).flatten()
    joined: dict[str, Tensor | None] = {}
    for name in (entry.name for entry in fields(Sampled)):
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            joined[name] = None
        elif name in ("tokens", "logprobs", "entropy"):
            joined[name] = right_padded(values, PADDING if name == "tokens" else 0)[rows]
        else:
            joined[name] = left_padded(values)[order]
    return Sampled(**joined)  # type: ignore[arg-type]
