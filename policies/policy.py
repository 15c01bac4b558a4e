"""The policy that is trained: what the trainer asks of it, and a stack's autoregressive model as one.

The trainer knows `ImagePolicy` only: something that rolls out images for prompts and gives log-probabilities of their
tokens again, with gradients. Nothing in it is shaped after one model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xomni_rl.envs.rollout import RolloutBatch, rollout
from xomni_rl.policies.lora import adapter_scaling, is_adapted, without_adapters
from xomni_rl.prompts import Prompt
from xomni_rl.stack.family import ImageStack
from xomni_rl.stack.prefix import layers_recomputed
from xomni_rl.stack.sampler import SamplingConfig, image_token_features, score_image_tokens


@dataclass(frozen=True)
class TokenBatch:
    """Whole groups of sampled tokens and the prefixes they were sampled after: what a policy scores.

    Attributes:
        input_ids, attention_mask: [P, L] int64, left padded.
        negative_ids, negative_mask: [P, L'] int64 with guidance, else None.
        tokens: [N, T] int64, N = P · group_size, group-major.
        group_size: G.
    Raises: ValueError if the shapes do not fit.
    """

    input_ids: Tensor
    attention_mask: Tensor
    negative_ids: Tensor | None
    negative_mask: Tensor | None
    tokens: Tensor
    group_size: int

    def __post_init__(self) -> None:
        if self.attention_mask.shape != self.input_ids.shape:
            shapes = f"{list(self.attention_mask.shape)} and {list(self.input_ids.shape)}"
            raise ValueError(f"attention_mask and input_ids must have one shape, not {shapes}")
        if self.tokens.dim() != 2 or len(self.tokens) != len(self.input_ids) * self.group_size:
            expected = f"[{len(self.input_ids)} prompts · {self.group_size}, T]"
            raise ValueError(f"tokens must be {expected}, not {list(self.tokens.shape)}")

    @classmethod
    def of(cls, batch: RolloutBatch) -> TokenBatch:
        """The tokens of a rollout and their prefixes."""
        return cls(
            batch.input_ids,
            batch.attention_mask,
            batch.negative_ids,
            batch.negative_mask,
            batch.tokens,
            batch.group_size,
        )

    def pieces(self, rows: int) -> Iterator[TokenBatch]:
        """At most so many rows of one group at a time, in order; each a batch of one prompt."""
        for group in range(len(self.input_ids)):
            whole = self.groups([group])
            for tokens in whole.tokens.split(rows):
                yield replace(whole, tokens=tokens, group_size=len(tokens))

    def groups(self, chosen: Sequence[int]) -> TokenBatch:
        """Some of the groups, in the given order."""
        picked = torch.as_tensor(list(chosen), device=self.input_ids.device)
        tokens = self.tokens.view(len(self.input_ids), self.group_size, -1)[picked].flatten(0, 1)
        negative_ids = None if self.negative_ids is None else self.negative_ids[picked]
        negative_mask = None if self.negative_mask is None else self.negative_mask[picked]
        return TokenBatch(
            self.input_ids[picked], self.attention_mask[picked], negative_ids, negative_mask, tokens, self.group_size
        )


class Sampler(Protocol):
    """Something that rolls out images for prompts."""

    def rollout(
        self,
        prompts: Sequence[Prompt],
        reward: Any,
        *,
        group_size: int,
        seed: int,
        sampling: SamplingConfig | None = None,
    ) -> RolloutBatch:
        """Samples, decodes and scores `group_size` images for each prompt, without gradients.

        Another `sampling` than the sampler's own is for evaluation: such rollouts are not trained on.
        """


class ImagePolicy(Sampler, Protocol):
    """A policy over image tokens.

    Attributes:
        module: what is trained; called with a `TokenBatch`'s tensors it gives log-probabilities with gradients. The
            trainer may replace it by a wrapped one (mixed precision, data parallel), so it goes through `logprobs`.
        model: the weights that checkpoints hold; `module` trains its parameters.
        feature_size: D of `features`.
    """

    module: nn.Module
    model: nn.Module
    feature_size: int

    def logprobs(self, batch: TokenBatch, *, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [N, T] and, if wanted, entropy [N, T], nats, of the distribution rolled out from.

        Both carry gradients.
        """

    def features(self, batch: TokenBatch) -> Tensor:
        """What the policy has in mind before each token, float [N, T, D] without gradients: what a critic judges by."""

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probabilities [N, T], nats, under the reference. Raises: RuntimeError without one."""

    def keep_reference(self, *, follows: bool = False) -> None:
        """Makes the weights as they are now the reference; in float32 if it `follows` them, by shares too small for 16 bits."""

    def move_reference(self, decay: float) -> None:
        """Moves the reference towards the weights as they are now: decay · reference + (1 - decay) · weights.

        Raises: ValueError if the reference cannot move.
        """

    def reference_tensors(self) -> dict[str, Tensor]:
        """The reference's weights by name, for a checkpoint; changing them changes the reference."""

    def description(self) -> Mapping[str, Any]:
        """The model's configuration, as a checkpoint's `config.json` holds it."""

    def weight_hashes(self) -> dict[str, str]:
        """SHA-256 of the weights, by part."""


class TokenScorer(nn.Module):
    """Scores tokens under the sampling distribution; a module, so that wrappers around `forward` see every use.

    Args:
        model: the stack's autoregressive model.
        sampling: the distribution rollouts are drawn from.
        by_layer: keep the layers' inputs alone and compute their insides again in the backward pass: far less memory, a third
            more time.
        rows: keep nothing but what so many images of one group need at a time, and compute the rest again; None = all at once.
            Together with `by_layer` everything is computed three times before its gradient, two thirds more time than without.
    """

    def __init__(self, model: nn.Module, sampling: SamplingConfig, *, by_layer: bool = False, rows: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.sampling = sampling
        self.by_layer = by_layer
        self.rows = rows

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        negative_ids: Tensor | None,
        negative_mask: Tensor | None,
        tokens: Tensor,
        group_size: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropy (or None), each [N, T] float32 nats, of tokens [N, T] after prefixes [P, L]."""
        batch = TokenBatch(input_ids, attention_mask, negative_ids, negative_mask, tokens, group_size)
        if self.rows is None:
            return self._score(batch, with_entropy)
        score = partial(checkpoint, self._score, use_reentrant=False) if torch.is_grad_enabled() else self._score
        scored = [score(piece, with_entropy) for piece in batch.pieces(self.rows)]
        logprobs = torch.cat([logprobs for logprobs, _ in scored])
        return logprobs, torch.cat([cast(Tensor, entropy) for _, entropy in scored]) if with_entropy else None

    def _score(self, batch: TokenBatch, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
        with layers_recomputed(self.model) if self.by_layer and torch.is_grad_enabled() else nullcontext():
            return score_image_tokens(
                self.model,  # type: ignore[arg-type]
                batch.input_ids,
                batch.attention_mask,
                batch.tokens,
                group_size=batch.group_size,
                sampling=self.sampling,
                negative_ids=batch.negative_ids,
                negative_mask=batch.negative_mask,
                with_entropy=with_entropy,
            )


class StackPolicy:
    """The autoregressive model of a stack, of whichever family, as an `ImagePolicy`.

    All of its parameters are trained, or, if low-rank adapters were added to it (`xomni_rl.policies.lora`), those alone; the
    base weights are then the reference, without a copy.

    Args:
        stack: rolls out; its model is trained in place.
        sampling: the distribution rollouts are drawn from and log-probabilities are computed under.
        gradient_checkpointing: see `TokenScorer.by_layer`.
        rows_at_a_time: see `TokenScorer.rows`; the reference's pass has as many.
        reference_offload: a frozen copy that is the reference lies in the CPU's memory and visits the model's device.
    """

    def __init__(
        self,
        stack: ImageStack,
        sampling: SamplingConfig | None = None,
        *,
        gradient_checkpointing: bool = False,
        rows_at_a_time: int | None = None,
        reference_offload: bool = False,
    ) -> None:
        self.stack = stack
        self.sampling = sampling or SamplingConfig()
        self.model: nn.Module = stack.model
        self.rows = rows_at_a_time
        self.reference_offload = reference_offload
        self.module: nn.Module = TokenScorer(stack.model, self.sampling, by_layer=gradient_checkpointing, rows=rows_at_a_time)
        self.feature_size: int = stack.model.config.get_text_config().hidden_size
        self.adapted = is_adapted(stack.model)
        self._reference: TokenScorer | None = None
        if not self.adapted:
            stack.model.requires_grad_(True)

    def rollout(
        self,
        prompts: Sequence[Prompt],
        reward: Any,
        *,
        group_size: int,
        seed: int,
        sampling: SamplingConfig | None = None,
    ) -> RolloutBatch:
        self.model.eval()
        return rollout(self.stack, prompts, reward, group_size=group_size, seed=seed, sampling=sampling or self.sampling)

    def logprobs(self, batch: TokenBatch, *, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        self.model.eval()  # dropout would take the trainer's log-probabilities away from the sampler's
        scored: tuple[Tensor, Tensor | None] = self.module(*_tensors(batch), with_entropy)
        return scored

    def features(self, batch: TokenBatch) -> Tensor:
        self.model.eval()
        prompt = batch.input_ids, batch.attention_mask
        return image_token_features(self.stack.model, *prompt, batch.tokens, group_size=batch.group_size).float()

    def reference_logprobs(self, batch: TokenBatch) -> Tensor:
        if self._reference is None:
            raise RuntimeError("no reference was kept: call keep_reference() before training")
        with torch.no_grad(), self._as_reference():
            logprobs: Tensor = self._reference(*_tensors(batch), False)[0]
        return logprobs

    def keep_reference(self, *, follows: bool = False) -> None:
        if self.adapted:
            self._reference = TokenScorer(self.stack.model, self.sampling, rows=self.rows)  # its base weights do not change
            return
        frozen = copy.deepcopy(self.stack.model).requires_grad_(False).eval()
        if follows:
            frozen.float()
        self._reference = TokenScorer(frozen, self.sampling, rows=self.rows)
        if self.reference_offload:
            self._reference.to("cpu")

    def move_reference(self, decay: float) -> None:
        if self.adapted:
            raise ValueError("with model.lora the reference is the base weights, which cannot move: set reference to frozen")
        anchors = self.reference_tensors()
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                anchor = anchors[name].to(value.device)
                anchors[name].copy_(torch.lerp(value.to(anchor.dtype), anchor, decay))

    def reference_tensors(self) -> dict[str, Tensor]:
        if self._reference is None or self.adapted:
            return {}
        return dict(self._reference.model.named_parameters())  # a shared one once: it must move once, and be saved once

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Where the reference can be asked: the stack's model without its adapters, or the copy on the model's device."""
        if self.adapted:
            with without_adapters(self.stack.model):
                yield
            return
        reference = cast(TokenScorer, self._reference)
        reference.to(self.stack.device)
        try:
            yield
        finally:
            if self.reference_offload:
                reference.to("cpu")

    def description(self) -> Mapping[str, Any]:
        described: dict[str, Any] = self.stack.model.config.to_dict()
        return described | ({"lora_scaling": adapter_scaling(self.stack.model)} if self.adapted else {})

    def weight_hashes(self) -> dict[str, str]:
        return self.stack.weight_hashes()


def _tensors(batch: TokenBatch) -> tuple[Any, ...]:
    negative = (batch.negative_ids, batch.negative_mask)
    return batch.input_ids, batch.attention_mask, *negative, batch.tokens, batch.group_size
