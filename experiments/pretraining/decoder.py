"""Trains the embedded diffusion decoder by flow matching on the tokens of rendered signs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xomni_rl.stack.decoder import DiffusionDecoder, flow_matching_loss
from xomni_rl.stack.image_tokenizer import SemanticImageTokenizer, to_pixels

from .data import SignBatch

PURE_NOISE_SHARE = 0.5
"""Share of training samples at σ = 1, where the one-step decoder works."""


class DecoderTrainer(nn.Module):
    """The decoder and the frozen tokenizer whose tokens it learns to show.

    The projector's decoding half learns along: it is part of what turns tokens into pixels, and the tokens themselves do not
    change with it.
    """

    def __init__(self, decoder: DiffusionDecoder, tokenizer: SemanticImageTokenizer) -> None:
        super().__init__()
        self.decoder = decoder
        self.tokenizer = tokenizer
        for module in (tokenizer.vision, tokenizer.projector.quant_conv, tokenizer.projector.quantize):
            module.requires_grad_(False)

    def forward(self, batch: SignBatch) -> tuple[Tensor, dict[str, float]]:
        pixels = to_pixels(batch.images)
        with torch.no_grad():
            tokens = self.tokenizer(pixels)
        latents = self.decoder.codec.encode(pixels)
        noise = torch.randn_like(latents)
        sigma = torch.rand(len(latents))
        sigma = torch.where(torch.rand(len(latents)) < PURE_NOISE_SHARE, torch.ones(()), sigma)
        loss = flow_matching_loss(self.decoder, latents, self.decoder.features(tokens), tuple(tokens.shape[1:]), noise, sigma)
        return loss, {"flow_matching": float(loss.detach())}
