"""What sharing a group's prompt and keeping a cache save in sampling: both against doing without, same weights, same tokens.

Shared: the prompt is computed once and its keys and values are expanded to the group; apart: once for every image. With a
cache a token computes one position; without, every position again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from xomni_rl.stack.sampler import sample_image_tokens, sample_uniforms
from xomni_rl.stack.stack import Stack

GROUP = 16
PROMPTS = 2
PROMPT_TOKENS = 256
TOKENS = 48
WITHOUT_CACHE = 12
"""Tokens drawn without a cache, which costs their number squared."""


def run(repeats: int = 5, prompt_tokens: int = PROMPT_TOKENS) -> dict[str, float]:
    """Measures both on the embedded stack and prints a table.

    Args:
        repeats: counted ones, in turns.
        prompt_tokens: length of a prompt.
    Returns: `ratio`, seconds with prompts apart / shared; `cache_ratio`, seconds without a cache / with one; the seconds.
    Raises: RuntimeError if a way of doing it draws other tokens.
    """
    model = Stack.from_pretrained("embedded").model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (PROMPTS, prompt_tokens), generator=generator)
    mask = torch.ones_like(ids)
    rows = ids.repeat_interleave(GROUP, 0)
    uniforms = sample_uniforms(0, [str(row // GROUP) for row in range(len(rows))], list(range(len(rows))), TOKENS)

    def shared(tokens: int = TOKENS) -> Tensor:
        return sample_image_tokens(model, ids, mask, tokens, uniforms=uniforms[:, :tokens], group_size=GROUP).tokens

    def apart() -> Tensor:
        return sample_image_tokens(model, rows, torch.ones_like(rows), TOKENS, uniforms=uniforms).tokens

    def again() -> Tensor:
        return without_cache(model, rows, uniforms[:, :WITHOUT_CACHE])

    check_same(shared(), apart(), "prompts apart")
    check_same(shared(WITHOUT_CACHE), again(), "no cache")
    prompts = in_turns([shared, apart], repeats)
    caches = in_turns([lambda: shared(WITHOUT_CACHE), again], max(2, repeats // 2))
    figures = {
        "ratio": prompts[1] / prompts[0],
        "cache_ratio": caches[1] / caches[0],
        "shared_seconds": prompts[0],
        "apart_seconds": prompts[1],
        "cached_seconds": caches[0],
        "uncached_seconds": caches[1],
    }
    _print(figures, prompt_tokens)
    return figures


@torch.no_grad()
def without_cache(model: Any, ids: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens [N, T] drawn with every position computed again for each of them."""
    sequence = ids
    for t in range(uniforms.shape[1]):
        logits = model(sequence, torch.ones_like(sequence), modality="image", logits_to_keep=1).logits[:, 0]
        chosen = (logits.double().softmax(-1).cumsum(-1) > uniforms[:, t : t + 1]).int().argmax(-1)
        sequence = torch.cat([sequence, chosen[:, None] + model.config.vocab_size], 1)
    return sequence[:, ids.shape[1] :] - model.config.vocab_size


def check_same(found: Tensor, other: Tensor, what: str) -> None:
    """Raises: RuntimeError if fewer than 9 of 10 images agree; a tie of floating-point numbers may fall either way."""
    share = float((found == other).all(1).float().mean())
    if share < 0.9:
        raise RuntimeError(f"{what}: only {share:.0%} of the images have the same tokens")


def in_turns(ways: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Median seconds of each way, A B A B …"""
    times = np.zeros((repeats, len(ways)))
    for repeat in range(repeats):
        for index, way in enumerate(ways):
            began = time.perf_counter()
            way()
            times[repeat, index] = time.perf_counter() - began
    return [float(seconds) for seconds in np.median(times, 0)]


def _print(figures: dict[str, float], prompt_tokens: int) -> None:
    images = PROMPTS * GROUP
    title = f"sampling {images} images in groups of {GROUP}, prompts of {prompt_tokens} tokens"
    table = Table("what", "without, s", "with, s", "ratio", title=title)
    shown = (
        (f"prompt shared by its group, {TOKENS} tokens", "apart_seconds", "shared_seconds", "ratio"),
        (f"cache kept, {WITHOUT_CACHE} tokens", "uncached_seconds", "cached_seconds", "cache_ratio"),
    )
    for what, *keys in shown:
        table.add_row(what, *(f"{figures[key]:.3f}" for key in keys))
    Console().print(table)


if __name__ == "__main__":
    run()
