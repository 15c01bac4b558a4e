"""State of N episodes side by side: tokens placed, what they have been paid, what they are told at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import InvalidAction, ResetNeeded

from xomni_rl.envs.policy_cache import PolicyCache
from xomni_rl.envs.task import EMPTY, Task
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeResult

Info = dict[str, Any]


class Episodes:
    """N slots, each with one episode. Slots that reach a scored token count together are decoded and scored together.

    Attributes:
        tokens: int64 [N, T], EMPTY from the first token that is not placed yet.
        steps: int64 [N], tokens placed; -1 before the slot's first episode.
        prompts: N prompts; None before the slot's first episode.
    """

    def __init__(self, task: Task, num_slots: int) -> None:
        self.task = task
        self.tokens = np.full((num_slots, task.num_tokens), EMPTY, dtype=np.int64)
        self.steps = np.full(num_slots, -1, dtype=np.int64)
        self.prompts: list[Prompt | None] = [None] * num_slots
        self._prompt_ids = np.full((num_slots, task.prompt_ids.shape[1]), EMPTY, dtype=np.int64)
        self._paid = np.zeros(num_slots, dtype=np.float64)
        self._policy = PolicyCache(task)

    def begin(self, slots: Sequence[int], chosen: Sequence[tuple[Prompt, np.ndarray]]) -> dict[int, Info]:
        """New episodes with these (prompt, ids [L]) pairs; returns each slot's first info."""
        for slot, (prompt, ids) in zip(slots, chosen, strict=True):
            self.prompts[slot] = prompt
            self._prompt_ids[slot] = ids
        rows = list(slots)
        self.tokens[rows], self.steps[rows], self._paid[rows] = EMPTY, 0, 0.0
        self._policy.begin(rows, self._prompt_ids[rows])
        return {slot: {"prompt": prompt.text, "prompt_id": prompt.id} for slot, (prompt, _) in zip(slots, chosen, strict=True)}

    def place(self, slots: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, dict[int, Info]]:
        """Places one token in each of n slots and pays what is due.

        Args:
            slots: int64 [n], distinct.
            actions: int64 [n] in [0, V).
        Returns: rewards float64 [n]; slot → info for the slots that were scored.
        Raises: ResetNeeded for a slot without a running episode; InvalidAction for a token out of range; RewardError.
        """
        stopped = slots[(self.steps[slots] < 0) | self.finished[slots]]
        if stopped.size:
            raise ResetNeeded(f"no episode is running in slot {stopped[0]}: call reset() before step()")
        vocab = self.task.stack.image_vocab_size
        wrong = actions[(actions < 0) | (actions >= vocab)]
        if wrong.size:
            raise InvalidAction(f"action {wrong[0]} is no image token; tokens are 0 to {vocab - 1}")
        self.tokens[slots, self.steps[slots]] = actions
        self.steps[slots] += 1
        rewards = np.zeros(len(slots), dtype=np.float64)
        due = np.flatnonzero(np.isin(self.steps[slots], self.task.reward_at))
        if not due.size:
            return rewards, {}
        scored = slots[due]
        prompts = [self._prompt(slot) for slot in scored]
        images = self.task.images(self.tokens[scored], [prompt.text for prompt in prompts])
        result = self.task.score(images, prompts)
        rewards[due] = self._pay(scored, result.scores)
        return rewards, {int(slot): _outcome(result, row, images[row], prompts[row]) for row, slot in enumerate(scored)}

    def pictures(self) -> np.ndarray:
        """uint8 [N, H, W, 3]: what every slot shows so far."""
        return self.task.images(self.tokens, ["" if prompt is None else prompt.text for prompt in self.prompts])

    @property
    def finished(self) -> np.ndarray:
        """bool [N]: the last token is placed."""
        return np.equal(self.steps, self.task.num_tokens)

    def policy_logprobs(self) -> np.ndarray:
        """float32 [N, V], nats: the stack's own next-token distribution in every slot (`PolicyCache.logprobs`)."""
        return self._policy.logprobs(self.tokens)

    def observations(self, slots: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Fresh arrays of n slots: prompt int64 [n, L], tokens int64 [n, T], step int64 [n]."""
        rows = np.asarray(slots, dtype=np.int64)
        return {"prompt": self._prompt_ids[rows], "tokens": self.tokens[rows], "step": np.maximum(self.steps[rows], 0)}

    def _prompt(self, slot: int) -> Prompt:
        prompt = self.prompts[slot]
        if prompt is None:
            raise ResetNeeded(f"no episode has begun in slot {slot}: call reset() first")
        return prompt

    def _pay(self, slots: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """What is due for these scores: the difference to what was paid, so that the return is the final score.

        NaN (not applicable, or dropped) is worth 0 at the end and changes nothing before it.
        """
        unknown = np.where(self.finished[slots], 0.0, self._paid[slots])
        value = np.where(np.isnan(scores), unknown, scores.astype(np.float64))
        due = value - self._paid[slots]
        self._paid[slots] = value
        return due


def whole_numbers(actions: Any) -> np.ndarray:
    """Actions of a caller as int64, of their own shape. Raises: InvalidAction for what holds anything but whole numbers."""
    made = np.asarray(actions)
    if made.dtype.kind not in "iu":
        raise InvalidAction(f"an action must be a whole number, the position of an image token, not {actions!r}")
    return made.astype(np.int64)


def _outcome(result: CompositeResult, row: int, image: np.ndarray, prompt: Prompt) -> Info:
    """What `info` says of one scored picture."""
    details = result.details[row]
    read = [detail["read"] for detail in details.values() if detail.get("read") is not None]
    info: Info = {
        "prompt": prompt.text,
        "prompt_id": prompt.id,
        "score": float(result.scores[row]),
        "applicable": not np.isnan(result.scores[row]),
        "failed": bool(result.failed[row]),
        "rewards": {name: float(result.components[row, k]) for k, name in enumerate(result.names)},
        "metrics": {name: float(values[row]) for name, values in result.metrics.items()},
        "details": details,
        "image": image.copy(),
    }
    if read:
        info["read"] = read[0]
    return info
