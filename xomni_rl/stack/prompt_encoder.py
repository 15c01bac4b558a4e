"""Text conditions of a FLUX decoder: the T5 sequence and CLIP's pooled vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel


class FluxPromptEncoder(nn.Module):
    """Encodes prompts as FLUX.1 does.

    Args:
        clip, clip_tokenizer: gives the pooled vector, from at most 77 ids.
        t5, t5_tokenizer: gives the sequence, padded to `length` ids.
        length: L.
    """

    def __init__(
        self,
        clip: CLIPTextModel,
        clip_tokenizer: PreTrainedTokenizerBase,
        t5: T5EncoderModel,
        t5_tokenizer: PreTrainedTokenizerBase,
        length: int = 512,
    ) -> None:
        super().__init__()
        self.clip, self.clip_tokenizer = clip.eval(), clip_tokenizer
        self.t5, self.t5_tokenizer = t5.eval(), t5_tokenizer
        self.length = length

    @torch.no_grad()
    def forward(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Sequence [N, L, T5 width] and pooled [N, CLIP width]."""
        pooled_length = min(77, self.clip.config.max_position_embeddings)
        short = self._ids(self.clip_tokenizer, texts, pooled_length).to(self.clip.device)
        long = self._ids(self.t5_tokenizer, texts, self.length).to(self.t5.device)
        return self.t5(long).last_hidden_state, self.clip(short).pooler_output

    @staticmethod
    def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> Tensor:
        encoded = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return encoded.input_ids
