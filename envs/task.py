"""What the single and the batched environment have in common: spaces, prompt ids, drawing and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from xomni_rl.envs.options import (
    DEFAULT_REWARD,
    PromptsOption,
    RewardOption,
    StackOption,
    image_size,
    make_prompts,
    make_reward,
    make_sampling,
    make_stack,
)
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeResult, CompositeReward
from xomni_rl.stack.family import ImageStack
from xomni_rl.stack.sampler import SamplingConfig

EMPTY = -1
"""Stands in observations for "no token": prompt padding and image tokens that are not placed yet."""

GREY = 128
"""Value of all three channels where nothing is drawn yet."""


@dataclass(frozen=True)
class Task:
    """A stack, prompts and a reward, resolved: all that an episode needs besides its own state.

    Args:
        stack: the generative stack.
        prompts: M prompts episodes draw from.
        prompt_ids: int64 [M, L], their ids left padded with EMPTY, as the stack's `encode_prompts` lays them out.
        reward: scores images.
        size: (height, width) in px.
        sampling: the distribution `policy_logprobs` gives.
        reward_at: ascending token counts at which an image is scored; the last one is `num_tokens`.
    """

    stack: ImageStack
    prompts: list[Prompt]
    prompt_ids: np.ndarray
    reward: CompositeReward
    size: tuple[int, int]
    sampling: SamplingConfig
    reward_at: tuple[int, ...]

    @cached_property
    def grid(self) -> tuple[int, int]:
        """(h, w) in tokens."""
        return self.stack.grid(self.size)

    @cached_property
    def num_tokens(self) -> int:
        """T, the length of an episode."""
        height, width = self.grid
        return height * width

    @cached_property
    def _position(self) -> dict[str, int]:
        return {prompt.id: index for index, prompt in enumerate(self.prompts)}

    def observation_space(self) -> spaces.Dict:
        """Dict(prompt int64 [L], tokens int64 [T], step in 0 … T)."""
        last_id, last_token = self.stack.model.num_ids - 1, self.stack.image_vocab_size - 1
        return spaces.Dict(
            {
                "prompt": spaces.Box(EMPTY, last_id, (self.prompt_ids.shape[1],), np.int64),
                "tokens": spaces.Box(EMPTY, last_token, (self.num_tokens,), np.int64),
                "step": spaces.Discrete(self.num_tokens + 1),
            }
        )

    def action_space(self) -> spaces.Discrete:
        """Discrete(image vocabulary)."""
        return spaces.Discrete(self.stack.image_vocab_size)

    def chosen(self, rng: np.random.Generator, wanted: Prompt | str | int | None = None) -> tuple[Prompt, np.ndarray]:
        """An episode's prompt and its ids [L]: the wanted one (a prompt, a text, a position), else a random one.

        Raises: ValueError for a position out of range or a prompt longer than the observation space allows.
        """
        if isinstance(wanted, Prompt | str):
            return self._encoded(wanted if isinstance(wanted, Prompt) else Prompt(id=wanted, text=wanted))
        index = int(rng.integers(len(self.prompts))) if wanted is None else int(wanted)
        if not 0 <= index < len(self.prompts):
            raise ValueError(f"prompt {index} does not exist; there are {len(self.prompts)}, counted from 0")
        return self.prompts[index], self.prompt_ids[index]

    def _encoded(self, prompt: Prompt) -> tuple[Prompt, np.ndarray]:
        position = self._position.get(prompt.id)
        if position is not None and self.prompts[position] == prompt:
            return prompt, self.prompt_ids[position]
        ids, limit = encoded_prompts(self.stack, [prompt], self.size), self.prompt_ids.shape[1]
        if ids.shape[1] > limit:
            raise ValueError(
                f'prompt "{prompt.text}" has {ids.shape[1]} tokens but observations hold {limit}; '
                "make the environment with a larger max_prompt_tokens"
            )
        return prompt, left_padded(ids, limit)[0]

    def images(self, tokens: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Pictures of token sequences, complete or not: what `render` shows and what is scored.

        A sequence that is not complete is decoded with its own first token in place of those to come, and their cells
        are then painted grey.

        Args:
            tokens: int64 [N, T]; EMPTY from the first token that is not placed yet.
            texts: N prompts, for a decoder that looks at them.
        Returns: uint8 [N, H, W, 3].
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens:
            raise ValueError(f"tokens must have shape [N, {self.num_tokens}], got {list(tokens.shape)}")
        pictures = np.full((len(tokens), *self.size, 3), GREY, dtype=np.uint8)
        begun = np.flatnonzero(tokens[:, 0] != EMPTY)
        if begun.size:
            given = tokens[begun]
            filled = np.where(given == EMPTY, given[:, :1], given)
            pictures[begun] = self.stack.decode(torch.from_numpy(filled), self.size, [texts[row] for row in begun])
        (height, width), (rows, columns) = self.size, self.grid
        empty = (tokens == EMPTY).reshape(-1, rows, columns)
        pictures[empty.repeat(height // rows, axis=1).repeat(width // columns, axis=2)] = GREY
        return pictures

    def score(self, images: np.ndarray, prompts: Sequence[Prompt]) -> CompositeResult:
        """Component scores of N pictures in one call; each is a group of its own."""
        return self.reward(images, list(prompts), np.arange(len(prompts), dtype=np.int64))


def build_task(
    stack: StackOption = "embedded",
    prompts: PromptsOption = "signs",
    reward: RewardOption = DEFAULT_REWARD,
    size: tuple[int, int] | None = None,
    sampling: SamplingConfig | dict[str, Any] | None = None,
    reward_at: Sequence[int] = (),
    max_prompt_tokens: int | None = None,
) -> Task:
    """The task that an environment's options describe; `TextToImageEnv` explains them.

    Raises: StackError, PromptError, UnknownNameError or ValueError with one sentence on the option that is wrong.
    """
    made_stack, made_prompts = make_stack(stack), make_prompts(prompts)
    made_size = image_size(made_stack, made_prompts, size)
    height, width = made_stack.grid(made_size)
    ids = encoded_prompts(made_stack, made_prompts, made_size)
    if max_prompt_tokens is not None and max_prompt_tokens < ids.shape[1]:
        raise ValueError(f"max_prompt_tokens is {max_prompt_tokens} but the longest prompt has {ids.shape[1]} tokens")
    return Task(
        stack=made_stack,
        prompts=made_prompts,
        prompt_ids=left_padded(ids, max_prompt_tokens or ids.shape[1]),
        reward=make_reward(reward),
        size=made_size,
        sampling=make_sampling(sampling),
        reward_at=_scored_counts(reward_at, height * width),
    )


def encoded_prompts(stack: ImageStack, prompts: Sequence[Prompt], size: tuple[int, int]) -> np.ndarray:
    """Prompt ids int64 [N, L], left padded with EMPTY to the longest of them."""
    ids, mask = stack.encode_prompts([prompt.text for prompt in prompts], size)
    return np.where(mask.cpu().numpy().astype(bool), ids.cpu().numpy(), EMPTY).astype(np.int64)


def left_padded(ids: np.ndarray, length: int) -> np.ndarray:
    """ids int64 [N, L] with EMPTY added on the left up to `length` columns."""
    return np.pad(ids, ((0, 0), (length - ids.shape[1], 0)), constant_values=EMPTY)


def _scored_counts(reward_at: Sequence[int], num_tokens: int) -> tuple[int, ...]:
    for count in reward_at:
        if not 1 <= count <= num_tokens:
            raise ValueError(f"reward_at holds {count}; an episode has 1 to {num_tokens} tokens")
    return tuple(sorted({*map(int, reward_at), num_tokens}))
