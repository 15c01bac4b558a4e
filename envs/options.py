"""What the environments' options stand for: names, paths and mappings become a stack, prompts, a reward and a size."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from xomni_rl.prompts import Prompt, PromptError, load_prompts, prompt_sets
from xomni_rl.registry import unknown_name
from xomni_rl.rewards.composite import CompositeReward, build_composite
from xomni_rl.stack.family import ImageStack
from xomni_rl.stack.sampler import SamplingConfig
from xomni_rl.stack.stack import Stack

DEFAULT_REWARD: Mapping[str, Any] = {
    "components": {"ocr": {"reward": "ocr", "weight": 1.0, "options": {"metric": "edit", "layout": "line"}}}
}
"""Reads a sign as one line of text; a picture with several lines needs `reward="ocr"`, which detects them first."""

DEFAULT_PROMPT_COUNT = 4096
_PROMPT_KEYS = ("set", "split", "count", "seed", "options")

StackOption = ImageStack | str | os.PathLike[str]
PromptsOption = str | os.PathLike[str] | Mapping[str, Any] | Sequence[Prompt | str]
RewardOption = CompositeReward | Mapping[str, Any] | str


def make_stack(stack: StackOption) -> ImageStack:
    """A stack given as itself, as "embedded" or as a folder. Raises: StackError if it cannot be loaded."""
    return Stack.from_pretrained(os.fspath(stack)) if isinstance(stack, str | os.PathLike) else stack


def make_prompts(prompts: PromptsOption) -> list[Prompt]:
    """Prompts given as a set's name, a `.jsonl` or `.txt` file, a mapping, or a list of prompts or texts.

    The mapping has the key `set` and, optionally, `split` (default "train"), `count` (4096), `seed` (0) and `options`.
    Texts of a list become prompts whose id is their position.

    Raises: PromptError for a bad or missing file; UnknownNameError for an unknown set; ValueError for an unknown key or none.
    """
    if isinstance(prompts, Mapping):
        made = _prompts_of_set(prompts)
    elif isinstance(prompts, str | os.PathLike):
        path = Path(prompts)
        is_file = path.suffix.lower() in (".jsonl", ".txt") or isinstance(prompts, os.PathLike)
        made = _prompts_of_file(path) if is_file else _prompts_of_set({"set": prompts})
    else:
        made = [p if isinstance(p, Prompt) else Prompt(id=f"{i:04d}", text=p) for i, p in enumerate(prompts)]
    if not made:
        raise ValueError("the environment needs at least one prompt, got none")
    return made


def _prompts_of_file(path: Path) -> list[Prompt]:
    if not path.is_file():
        raise PromptError(f"there are no prompts at {path}; give a .jsonl or .txt file, or the name of a prompt set")
    return load_prompts(path)


def _prompts_of_set(config: Mapping[str, Any]) -> list[Prompt]:
    for key in config:
        if key not in _PROMPT_KEYS:
            raise ValueError(unknown_name("key of prompts", str(key), _PROMPT_KEYS))
    if "set" not in config:
        raise ValueError('prompts given as a mapping need the key "set"')
    make = prompt_sets.get(config["set"])
    split, count, seed = config.get("split", "train"), config.get("count", DEFAULT_PROMPT_COUNT), config.get("seed", 0)
    return make(split=split, count=count, seed=seed, **dict(config.get("options") or {}))


def make_reward(reward: RewardOption) -> CompositeReward:
    """A reward given as a composite, its configuration, or the name of one reward (with its own defaults).

    Raises: UnknownNameError for an unknown reward; ValueError for a bad configuration.
    """
    if isinstance(reward, str):
        return build_composite({"components": {reward: {"reward": reward, "weight": 1.0}}})
    return build_composite(reward) if isinstance(reward, Mapping) else reward


def make_sampling(sampling: SamplingConfig | Mapping[str, Any] | None) -> SamplingConfig:
    """Sampling given as itself, as a mapping of its fields, or not at all. Raises: ValueError for a bad key or value."""
    if isinstance(sampling, SamplingConfig):
        return sampling
    known = [entry.name for entry in fields(SamplingConfig)]
    for key in sampling or {}:
        if key not in known:
            raise ValueError(unknown_name("key of sampling", str(key), known))
    return SamplingConfig(**(sampling or {}))


def image_size(stack: ImageStack, prompts: Sequence[Prompt], size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) in px: the size asked for, else the one the prompts share, else the stack's default.

    Raises: ValueError if no size is asked for and the prompts want several; StackError if it is no multiple of a token.
    """
    if size is None:
        wanted = {prompt.size or stack.default_size for prompt in prompts}
        if len(wanted) > 1:
            several = ", ".join(f"{height}×{width}" for height, width in sorted(wanted))
            raise ValueError(f"the prompts ask for images of several sizes ({several} px); pass size=(height, width)")
        size = wanted.pop() if wanted else stack.default_size
    height, width = size
    stack.grid((height, width))
    return height, width
