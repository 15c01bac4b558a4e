"""Image tokens from any causal model of transformers, through its own key-value cache: what a new family begins from.

The prompt is computed once per group and its cache expanded, for sampling and, with gradients, for scoring.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache

from .distribution import SamplingConfig, guide, sampling_logprobs
from .incremental import check_prompts, with_negative
from .prefix import PromptPass


class CachedTokenModel(nn.Module, ABC):
    """A `xomni_rl.stack.family.TokenModel` around a causal body; a family adds how prompts and tokens are embedded.

    Args:
        config: of the whole model, of transformers.
        body: called with `inputs_embeds`, `attention_mask`, `position_ids` and `past_key_values`, gives hidden states after the
            final norm.
    """

    def __init__(self, config: Any, body: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.body = body

    @property
    def num_ids(self) -> int:
        """Ids of a prompt are below it."""
        count: int = self.config.get_text_config().vocab_size
        return count

    def embed_prompts(self, input_ids: Tensor) -> Tensor:
        """[P, L] → [P, L, hidden]."""
        embedded: Tensor = self.body.get_input_embeddings()(input_ids)  # type: ignore[operator]
        return embedded

    @abstractmethod
    def embed_tokens(self, tokens: Tensor, first: int, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds image tokens, with whatever the model's format puts between them.

        Args:
            tokens: [N, t] int64 image tokens.
            first: position of the first of them in its image, from 0.
            input_ids: [P, L], the prompts; they say what an image's format depends on.
        Returns: embeddings [N, t', hidden]; int64 [t], the position among t' whose hidden state predicts the token after
            each of the t.
        """

    @abstractmethod
    def image_logits(self, features: Tensor) -> Tensor:
        """Logits over the image vocabulary alone: [..., hidden] → [..., V]."""

    def read(self, embedded: Tensor, prompt_mask: Tensor, cache: Cache) -> Tensor:
        """Runs the body over embeddings [N, t', hidden] that follow what is in the cache; gives hidden states of that shape.

        `prompt_mask` [N, L] is the prompts' mask; everything after the prompt counts.
        """
        length = cache.get_seq_length() + embedded.shape[1]
        mask = F.pad(prompt_mask, (0, length - prompt_mask.shape[1]), value=1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -embedded.shape[1] :]
        inputs = {"inputs_embeds": embedded, "attention_mask": mask, "position_ids": positions}
        hidden: Tensor = self.body(**inputs, past_key_values=cache, use_cache=True).last_hidden_state
        return hidden

    def image_features(self, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, group_size: int = 1) -> Tensor:
        """Hidden states [N, T, hidden] that predict each of `tokens` [N, T]."""
        prompts = PromptPass()
        last = self.read(self.embed_prompts(input_ids), attention_mask, prompts)[:, -1:].repeat_interleave(group_size, 0)
        if tokens.shape[1] == 1:
            return last
        cache = prompts.followed_by(group_size)
        embedded, kept = self.embed_tokens(tokens[:, :-1], 0, input_ids)
        rest = self.read(embedded, attention_mask.repeat_interleave(group_size, 0), cache)
        return torch.cat([last, rest[:, kept]], 1)

    def image_sampler(self, *arguments: Any, **options: Any) -> CachedSampler:
        """`CachedSampler` of this model; arguments as it has them after the model."""
        return CachedSampler(self, *arguments, **options)


class CachedSampler:
    """The next-token distribution of a `CachedTokenModel`, with a cache that grows by `append`.

    Args:
        model: in evaluation mode.
        input_ids, attention_mask: [P, L], left padded.
        num_tokens: T, how many tokens may be appended.
        sampling: temperature, truncation, guidance.
        group_size: G rollouts of each prompt; N = P·G, group-major.
        negative_ids, negative_mask: [P, L'], needed if `sampling` is guided.
    Raises: ValueError for other shapes, a missing negative prompt, or a context longer than the model's positions.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: CachedTokenModel,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        sampling: SamplingConfig | None = None,
        *,
        group_size: int = 1,
        negative_ids: Tensor | None = None,
        negative_mask: Tensor | None = None,
    ) -> None:
        self.model, self.num_tokens, self.count = model, num_tokens, 0
        self.sampling = sampling or SamplingConfig()
        check_prompts(model, input_ids, attention_mask, num_tokens)
        self.num_rows = len(input_ids) * group_size
        if self.sampling.guided:
            input_ids, attention_mask = with_negative(input_ids, attention_mask, negative_ids, negative_mask)
        self.input_ids = input_ids
        self.cache = DynamicCache(config=model.config.get_text_config())
        hidden = model.read(model.embed_prompts(input_ids), attention_mask, self.cache)[:, -1]
        self.cache.batch_repeat_interleave(group_size)
        self.prompt_mask = attention_mask.repeat_interleave(group_size, 0)
        self._next_logits = model.image_logits(hidden).repeat_interleave(group_size, 0)

    def logprobs(self) -> Tensor:
        """[N, V] log-probabilities of the next token under the distribution sampled from, nats."""
        logits = self._next_logits
        if self.sampling.guided:
            conditional, negative = logits.split(self.num_rows)
            logits = guide(conditional, negative, self.sampling.cfg_scale)
        return sampling_logprobs(logits, self.sampling)

    @torch.no_grad()
    def append(self, tokens: Tensor) -> None:
        """Adds a token [N] int64 to every row. Raises: ValueError for another shape or when all `num_tokens` are there."""
        if tokens.shape != (self.num_rows,):
            raise ValueError(f"tokens must be [{self.num_rows}], not {list(tokens.shape)}")
        if self.count == self.num_tokens:
            raise ValueError(f"all {self.num_tokens} tokens are there already")
        self.count += 1
        if self.count == self.num_tokens:
            return
        column = tokens.repeat(2 if self.sampling.guided else 1)[:, None]
        embedded, kept = self.model.embed_tokens(column, self.count - 1, self.input_ids)
        hidden = self.model.read(embedded, self.prompt_mask, self.cache)
        self._next_logits = self.model.image_logits(hidden[:, kept[0]])
