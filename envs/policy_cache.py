"""The stack's own policy beside an episode: next-token log-probabilities with a key-value cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from xomni_rl.envs.rollout import negative_prompts
from xomni_rl.envs.task import EMPTY, Task
from xomni_rl.stack.family import TokenSampler


class _Cohort:
    """Slots whose episodes began together, so that one sampler with one cache serves them all."""

    def __init__(self, slots: np.ndarray, prompt_ids: np.ndarray) -> None:
        self.slots = slots
        self.live = np.ones(len(slots), dtype=bool)
        self.prompt_ids = prompt_ids
        self.sampler: TokenSampler | None = None
        self.fed = 0

    def caught_up(self, task: Task, tokens: np.ndarray) -> TokenSampler:
        """The sampler after the cohort's tokens so far (int64 [n, T]) have gone in."""
        if self.sampler is None:
            self.sampler = _sampler(task, self.prompt_ids)
        placed = int((tokens[self.live] != EMPTY).sum(axis=1).max())
        while self.fed < placed:
            # A slot that left the cohort keeps its row; what goes in there is never looked at.
            column = np.where(self.live, tokens[:, self.fed], 0)
            self.sampler.append(torch.from_numpy(column).to(task.stack.device))
            self.fed += 1
        return self.sampler


class PolicyCache:
    """Log-probabilities of the stack's model for the next token of N slots.

    Nothing is computed until `logprobs` is called, so an agent that doesn't use the model doesn't pay for it; tokens
    placed meanwhile are fed in then.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._cohorts: list[_Cohort] = []

    def begin(self, slots: Sequence[int], prompt_ids: np.ndarray) -> None:
        """New episodes in these slots with these prompts (int64 [n, L], EMPTY = padding)."""
        starting = np.asarray(slots, dtype=np.int64)
        for cohort in self._cohorts:
            cohort.live &= ~np.isin(cohort.slots, starting)
        self._cohorts = [cohort for cohort in self._cohorts if cohort.live.any()]
        self._cohorts.append(_Cohort(starting, prompt_ids))

    def logprobs(self, tokens: np.ndarray) -> np.ndarray:
        """Log-probabilities float32 [N, V] of each slot's next token, nats, under the task's sampling options.

        A slot whose episode is over gets the uniform distribution: its next action is not used.

        Args:
            tokens: int64 [N, T], EMPTY from the first token that is not placed yet.
        """
        vocab = self._task.stack.image_vocab_size
        out = np.full((len(tokens), vocab), -math.log(vocab), dtype=np.float32)
        for cohort in self._cohorts:
            own = tokens[cohort.slots]
            if (own[cohort.live] != EMPTY).all():
                continue
            with torch.no_grad():
                logprobs = cohort.caught_up(self._task, own).logprobs()
            out[cohort.slots[cohort.live]] = logprobs.cpu().numpy()[cohort.live]
        return out


def _sampler(task: Task, prompt_ids: np.ndarray) -> TokenSampler:
    """A sampler for n prompts, padded only to the longest of them, as a whole-sequence rollout would have it."""
    used = np.flatnonzero((prompt_ids != EMPTY).any(axis=0))[0]
    ids = torch.from_numpy(prompt_ids[:, used:]).to(task.stack.device)
    mask, ids = (ids != EMPTY).long(), ids.clamp(min=0)
    negative_ids, negative_mask = negative_prompts(task.stack, ids, mask, task.sampling, task.size)
    sampler: TokenSampler = task.stack.model.image_sampler(
        ids,
        mask,
        task.num_tokens,
        task.sampling,
        negative_ids=negative_ids,
        negative_mask=negative_mask,
    )
    return sampler
