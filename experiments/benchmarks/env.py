"""What the batched environment costs on top of sampling, decoding and scoring: `xomni-rl bench env`.

Both sides make the same 64 images from the same prompts and random numbers, with the same model, decoder and OCR. The
bare side is `sample_image_tokens`, `Stack.decode` and the reward called one after the other. The other side steps
through `TextToImageVectorEnv`: it asks for the policy's log-probabilities, draws a token per slot and steps, 48 times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from xomni_rl.envs.options import DEFAULT_REWARD, make_prompts, make_reward
from xomni_rl.envs.vector import TextToImageVectorEnv
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.stack.sampler import draw_tokens, sample_image_tokens, sample_uniforms
from xomni_rl.stack.stack import Stack

BATCH, REPEATS = 64, 9
Parts = dict[str, float]


def run(stack: Stack | None = None, batch: int = BATCH, repeats: int = REPEATS) -> dict[str, Any]:
    """Measures both sides in turns and prints a table.

    Args:
        stack: None = the embedded one.
        batch: N images at a time.
        repeats: how often each side runs; every figure is a median.
    Returns: `ratio` = seconds through the environment / bare seconds (median of the ratios of neighbouring runs),
        `overhead` = ratio - 1, and the seconds they are made of.
    Raises: RuntimeError if the two sides don't make the same images and scores.
    """
    stack = stack or Stack.from_pretrained("embedded")
    prompts, reward = make_prompts({"set": "signs", "split": "heldout", "count": batch}), make_reward(DEFAULT_REWARD)
    env = TextToImageVectorEnv(batch, stack=stack, prompts=prompts, reward=reward)
    uniforms = sample_uniforms(0, [prompt.id for prompt in prompts], list(range(batch)), env.task.num_tokens)
    sides: dict[str, Callable[[], tuple[Parts, np.ndarray, np.ndarray]]] = {
        "bare": lambda: bare(stack, prompts, reward, uniforms),
        "env": lambda: through_environment(env, prompts, uniforms),
    }
    results = {name: side() for name, side in sides.items()}  # warms up
    check_same(results["bare"][1:], results["env"][1:])
    runs: dict[str, list[Parts]] = {"bare": [], "env": []}
    for turn in range(repeats):
        for name in ("bare", "env") if turn % 2 else ("env", "bare"):
            runs[name].append(sides[name]()[0])
    ratio = median(env["total"] / bare["total"] for env, bare in zip(runs["env"], runs["bare"], strict=True))
    parts = {name: {part: median(run[part] for run in made) for part in made[0]} for name, made in runs.items()}
    print_table(parts, ratio, batch, repeats)
    return {"ratio": ratio, "overhead": ratio - 1, "batch": batch, "repeats": repeats, "seconds": parts}


def bare(
    stack: Stack, prompts: Sequence[Prompt], reward: CompositeReward, uniforms: torch.Tensor
) -> tuple[Parts, np.ndarray, np.ndarray]:
    """Seconds per part, tokens int64 [N, T] and scores float32 [N] without an environment."""
    clock = Clock()
    input_ids, attention_mask = stack.encode_prompts([prompt.text for prompt in prompts])
    tokens = sample_image_tokens(stack.model, input_ids, attention_mask, uniforms.shape[1], uniforms=uniforms).tokens
    clock.lap("sample")
    images = stack.decode(tokens)
    clock.lap("decode")
    scores = reward(images, prompts, np.arange(len(prompts))).scores
    clock.lap("reward")
    return clock.parts(), tokens.cpu().numpy(), scores


def through_environment(
    env: TextToImageVectorEnv, prompts: Sequence[Prompt], uniforms: torch.Tensor
) -> tuple[Parts, np.ndarray, np.ndarray]:
    """The same through `reset`, `policy_logprobs` and `step`; the last step decodes and scores."""
    clock = Clock()
    env.reset(options={"prompts": prompts})
    clock.lap("reset")
    for t in range(uniforms.shape[1]):
        logprobs = torch.from_numpy(env.policy_logprobs())
        actions = draw_tokens(logprobs, uniforms[:, t]).numpy()
        clock.lap("sample")
        observations, rewards, *_ = env.step(actions)
        clock.lap("step" if t + 1 < uniforms.shape[1] else "last step")
    return clock.parts(), observations["tokens"], rewards.astype(np.float32)


class Clock:
    """Adds up the time between laps under the names they are given."""

    def __init__(self) -> None:
        self._seconds: Parts = {}
        self._start = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def parts(self) -> Parts:
        """Seconds per name and in `total`."""
        return {**self._seconds, "total": self._last - self._start}


def check_same(bare: Sequence[np.ndarray], env: Sequence[np.ndarray]) -> None:
    """Raises RuntimeError unless tokens are equal and scores agree to 1e-6: otherwise times are not comparable."""
    if not np.array_equal(bare[0], env[0]) or not np.allclose(bare[1], env[1], atol=1e-6):
        differing = int((bare[0] != env[0]).any(axis=1).sum())
        raise RuntimeError(f"stepping and bare sampling differ in the tokens of {differing} of {len(env[0])} images")


def print_table(parts: dict[str, Parts], ratio: float, batch: int, repeats: int) -> None:
    """Both sides' seconds, one row per part."""
    table = Table("part", "bare, s", "environment, s", title=f"{batch} images, median of {repeats}")
    for part in dict.fromkeys([*parts["env"], *parts["bare"]]):
        table.add_row(part, *(f"{parts[side][part]:.4f}" if part in parts[side] else "" for side in ("bare", "env")))
    table.add_row("ratio", "1", f"{ratio:.4f}")
    Console().print(table)


if __name__ == "__main__":
    run()
