"""Trains the embedded image tokenizer: reconstruction and a semantic head (characters, colour) through a quantised bottleneck.

The codebook follows an exponential moving average of the unit vectors assigned to each code; a code that is not used for a
while restarts at a vector of the batch. Both heads are thrown away afterwards: pixels are the diffusion decoder's business.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xomni_rl.prompt_sets.signs import ALPHABET, COLOURS
from xomni_rl.stack.image_tokenizer import SemanticImageTokenizer, to_pixels

from .data import SignBatch, character_columns


class TokenizerTrainer(nn.Module):
    """The tokenizer with its two training heads and the codebook's running statistics.

    Args:
        tokenizer: trained in place.
        rows: token rows of an image.
        decay: of the codebook's moving average.
        restart_below: mean uses a batch under which a code restarts.
    """

    usage: Tensor
    sums: Tensor

    def __init__(self, tokenizer: SemanticImageTokenizer, rows: int, decay: float = 0.97, restart_below: float = 0.05) -> None:
        super().__init__()
        channels = tokenizer.projector.config["z_channels"]
        self.tokenizer = tokenizer
        self.decay = decay
        self.restart_below = restart_below
        self.pixels = nn.Conv2d(channels, 3 * tokenizer.patch_size**2, 1)
        self.characters = nn.Linear(rows * channels, 1 + len(ALPHABET))
        self.colour = nn.Linear(channels, len(COLOURS))
        codebook = tokenizer.projector.quantize.embedding.weight
        codebook.requires_grad_(False)
        codebook.data = nn.functional.normalize(codebook.data, dim=-1)
        self.register_buffer("usage", torch.ones(len(codebook)))
        self.register_buffer("sums", codebook.data.clone())

    def forward(self, batch: SignBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch, and its parts; moves the codebook."""
        projector = self.tokenizer.projector
        pixels = to_pixels(batch.images)
        features, grid = self.tokenizer.features(pixels)
        z = nn.functional.normalize(projector.project(features, grid), dim=1)
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)
        tokens = projector.quantize.nearest(flat)
        codes = projector.quantize.embedding(tokens).view(*z.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        if self.training:
            self._move_codebook(flat.detach(), tokens)
        decoded = projector.decode_codes(z + (codes - z).detach())

        target = nn.functional.pixel_unshuffle(pixels, self.tokenizer.patch_size)
        reconstruction = (self.pixels(decoded) - target).square().mean()
        commitment = (z - codes).square().sum(1).mean()
        columns = character_columns(batch.texts, ALPHABET, grid[1]).flatten()
        stacked = decoded.permute(0, 3, 2, 1).flatten(2)
        character = nn.functional.cross_entropy(self.characters(stacked).flatten(0, 1), columns)
        names = list(COLOURS)
        colour_target = torch.tensor([names.index(c) for c in batch.colours])
        colour = nn.functional.cross_entropy(self.colour(decoded.mean((2, 3))), colour_target)
        loss = 4 * reconstruction + 0.25 * commitment + 0.1 * character + 0.05 * colour
        parts = {"reconstruction": reconstruction, "commitment": commitment, "character": character, "colour": colour}
        return loss, {k: float(v.detach()) for k, v in parts.items()} | {"codes": float((self.usage > 0.3).sum())}

    @torch.no_grad()
    def _move_codebook(self, vectors: Tensor, tokens: Tensor) -> None:
        count = torch.bincount(tokens, minlength=len(self.usage)).to(vectors)
        sums = torch.zeros_like(self.sums).index_add_(0, tokens, vectors)
        self.usage.lerp_(count, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = self.usage < self.restart_below
        if dead.any():
            picked = vectors[torch.randint(len(vectors), (int(dead.sum()),))]
            self.sums[dead] = picked
            self.usage[dead] = 1.0
        self.tokenizer.projector.quantize.embedding.weight.data = nn.functional.normalize(self.sums, dim=-1)
