"""Trains the embedded autoregressive model on both directions: prompt → image tokens, and image tokens → text."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from xomni_rl.stack.autoregressive import XOmniForCausalLM
from xomni_rl.stack.image_tokenizer import SemanticImageTokenizer, to_pixels
from xomni_rl.stack.text import PromptFormat

from .data import Signs

READ = "What does the sign say?"
COLOUR = "What colour is the sign?"
UNCONDITIONAL_SHARE = 0.1
"""Share of image samples whose prompt is the image prefix alone, so that guidance has a negative to lean on."""
READING_SHARE = 0.25
"""Share of a batch that reads signs instead of writing them."""
COLOUR_SHARE = 0.2
"""Share of the reading samples that ask for the colour."""


class AutoregressiveTrainer(nn.Module):
    """The model and the frozen image tokenizer that gives it its targets.

    A step's random choices come from `rng`, set before every call.
    """

    def __init__(
        self,
        model: XOmniForCausalLM,
        tokenizer: SemanticImageTokenizer,
        prompt_format: PromptFormat,
        reading_share: float = READING_SHARE,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer.requires_grad_(False)
        self.format = prompt_format
        self.reading_share = reading_share
        self.rng = np.random.default_rng(0)

    def forward(self, batch: Signs) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy of image tokens plus mean cross-entropy of answers, nats."""
        with torch.no_grad():
            tokens = self.tokenizer(to_pixels(batch.images))
        reading = round(len(tokens) * self.reading_share)
        writing = self._writing_loss(batch.prompts()[reading:], tokens[reading:])
        answers = self._reading_loss(batch, tokens[:reading])
        return writing + answers, {"writing": float(writing.detach()), "reading": float(answers.detach())}

    def _writing_loss(self, prompts: list[str], tokens: Tensor) -> Tensor:
        grid = (int(tokens.shape[1]), int(tokens.shape[2]))
        prefix = self.format.image_prefix(grid)
        dropped = self.rng.random(len(prompts)) < UNCONDITIONAL_SHARE
        rows = [prefix if d else self.format.image_prompt(p, grid) for d, p in zip(dropped, prompts, strict=True)]
        ids, mask = self.format.left_padded(rows)
        targets = tokens.flatten(1)
        ids = torch.cat([ids, targets[:, :-1] + self.format.vocab_size], 1)
        mask = torch.cat([mask, torch.ones_like(targets[:, :-1])], 1)
        logits = self.model(ids, mask, modality="image", logits_to_keep=targets.shape[1]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _reading_loss(self, batch: Signs, tokens: Tensor) -> Tensor:
        asks_colour = self.rng.random(len(tokens)) < COLOUR_SHARE
        questions = [COLOUR if c else READ for c in asks_colour]
        answers = [batch.colours[i] if c else batch.texts[i] for i, c in enumerate(asks_colour)]
        prompts = [self.format.chat_prompt(t, q) for t, q in zip(tokens, questions, strict=True)]
        full = [[*p, *self.format.text(a), self.format.end] for p, a in zip(prompts, answers, strict=True)]
        ids, mask = self.format.left_padded(full)
        labels = torch.full_like(ids, -100)
        for row, prompt, whole in zip(labels, prompts, full, strict=True):
            row[len(row) - len(whole) + len(prompt) :] = torch.tensor(whole[len(prompt) :])
        kept = int((labels != -100).any(0).nonzero()[0]) - 1
        logits = self.model(ids, mask, modality="text", logits_to_keep=ids.shape[1] - kept).logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, kept + 1 :].flatten())
