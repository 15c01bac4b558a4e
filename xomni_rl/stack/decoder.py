"""The diffusion decoder: a Flux transformer with flow matching that turns token features into pixels.

Token features enter beside the latent of their position: the transformer's input layer sees `[latent, features]`, which is
the same map as X-Omni's separate feature-injection layer added to the latent's embedding. The decoder is never trained by
the policy: it is offline, so that rewards are earned by tokens alone.

Source: arXiv 2507.22058, section 3.3. The embedded size departs from FLUX.1 only by having no VAE and no text encoders:
its latents are linear codes of 8×8 pixel patches, and it sees tokens only: given the prompt it could write the text without
them. FLUX.1's own parts are in `flux.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xomni_rl.stack.image_tokenizer import VQProjector, load_exactly
from xomni_rl.stack.tensor_files import check_fits


class LatentCodec(Protocol):
    """Pixels ↔ the sequence of latents that the transformer sees, one latent per token position."""

    channels: int

    def encode(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] → [N, h·w, channels]."""
        ...

    def decode(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """[N, h·w, channels] → [N, 3, H, W] in [-1, 1] (may overshoot)."""
        ...


class PatchCodec(nn.Module):
    """The embedded codec: a patch of pixels in the leading principal components of the domain's patches, a linear autoencoder.

    Args:
        patch: pixels along each side.
        channels: components kept, at most 3·patch².
    """

    mean: Tensor
    components: Tensor

    def __init__(self, patch: int, channels: int) -> None:
        super().__init__()
        size = 3 * patch * patch
        if not 1 <= channels <= size:
            raise ValueError(f"a codec of {patch}×{patch} patches has 1 to {size} channels, not {channels}")
        self.patch = patch
        self.channels = channels
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.eye(size)[:channels].clone())

    def fit(self, pixels: Tensor) -> None:
        """Takes mean and principal components from images [N, 3, H, W] in [-1, 1]."""
        patches = self._patches(pixels).flatten(0, 1)
        self.mean = patches.mean(0)
        covariance = torch.cov((patches - self.mean).T.double())
        self.components = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : self.channels].T.float().contiguous()

    def _patches(self, pixels: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(pixels, self.patch).flatten(2).transpose(1, 2)

    def encode(self, pixels: Tensor) -> Tensor:
        return (self._patches(pixels) - self.mean) @ self.components.T

    def decode(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = latents @ self.components + self.mean
        n, _, size = patches.shape
        return nn.functional.pixel_shuffle(patches.transpose(1, 2).reshape(n, size, *grid), self.patch)


class PromptEncoder(Protocol):
    """Text conditions of a decoder that has them (FLUX: T5 sequence and CLIP pooled)."""

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Returns sequence [N, L, joint_attention_dim] and pooled [N, pooled_projection_dim]."""
        ...


@dataclass(frozen=True)
class TrueGuidance:
    """Classifier-free guidance of the decoder, towards its tokens and towards the prompt.

    v = v(∅, ∅) + tokens·(v(∅, tokens) − v(∅, ∅)) + text·(v(prompt, tokens) − v(∅, tokens)), where ∅ is an empty prompt and
    features of zero. With both scales 1 that is v(prompt, tokens), in one pass instead of three.

    Source: arXiv:2211.09800, equation 3, with its two conditions in this order; the scales are `cfg_scale` and
    `cfg_scale_2` of the checkpoint's `vision_config.decoder`.

    Attributes:
        text, tokens: the scales, ≥ 0.
        distilled: of a transformer that takes guidance as an input (FLUX.1-dev), as the public implementation sets it.
    """

    text: float = 1.0
    tokens: float = 1.0
    distilled: float = 1.0

    @property
    def on(self) -> bool:
        return self.text != 1.0 or self.tokens != 1.0


Condition = tuple[Tensor, Tensor]
"""Text condition: sequence [N, L, joint_attention_dim] and pooled [N, pooled_projection_dim]."""


class DiffusionDecoder(nn.Module):
    """Tokens → pixels.

    Args:
        transformer: diffusers' Flux transformer; `in_channels` = latent channels + feature channels, `out_channels` = latent
            channels.
        scheduler: diffusers' flow-matching Euler scheduler.
        projector: gives the features of tokens.
        codec: latents ↔ pixels.
        steps: Euler steps.
        prompt_encoder: where the model has text encoders; without one, the text condition is a single zero.
        guidance: classifier-free guidance.
        batch: images at a time; None = all.
        works_on: device that text encoders, transformer and codec are moved to in turns, for as long as each works; None =
            they stay where they are.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        projector: VQProjector,
        codec: LatentCodec,
        steps: int,
        prompt_encoder: PromptEncoder | None = None,
        *,
        guidance: TrueGuidance | None = None,
        batch: int | None = None,
        works_on: torch.device | None = None,
    ) -> None:
        super().__init__()
        if transformer.config.out_channels != codec.channels:
            raise ValueError(f"the transformer gives {transformer.config.out_channels} channels, not {codec.channels}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        self.transformer = transformer
        self.scheduler = scheduler
        self.projector = projector
        self.codec = codec
        self.steps = steps
        self.prompt_encoder = prompt_encoder
        self.guidance = guidance or TrueGuidance()
        self.batch = batch
        self.works_on = works_on

    @classmethod
    def from_pretrained(cls, folder: str | Path, projector: VQProjector, patch: int, steps: int) -> DiffusionDecoder:
        """Loads an embedded-size decoder (`transformer/`, `scheduler/`, `codec.safetensors`) from a folder.

        Raises: OSError or ValueError for a missing, damaged or unfitting file.
        """
        folder = Path(folder)
        with torch.device("meta"):  # a damaged configuration may be one of gigabytes
            config = FluxTransformer2DModel.load_config(str(folder), subfolder="transformer", local_files_only=True)
            check_fits(folder / "transformer", FluxTransformer2DModel.from_config(config))
        transformer = FluxTransformer2DModel.from_pretrained(
            str(folder), subfolder="transformer", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(str(folder), subfolder="scheduler", local_files_only=True)
        codec = PatchCodec(patch, transformer.config.out_channels)
        load_exactly(codec, load_file(folder / "codec.safetensors"), str(folder / "codec.safetensors"))
        return cls(transformer.eval(), scheduler, projector, codec, steps)

    @classmethod
    def from_config(cls, config: dict[str, Any], projector: VQProjector, patch: int, steps: int) -> DiffusionDecoder:
        """A freshly initialised embedded-size decoder; `config` holds the transformer's sizes, `out_channels` among them."""
        features = projector.config["z_channels"]
        transformer = FluxTransformer2DModel(in_channels=config["out_channels"] + features, patch_size=1, **config)
        codec = PatchCodec(patch, config["out_channels"])
        return cls(transformer, FlowMatchEulerDiscreteScheduler(), projector, codec, steps)

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.transformer.save_pretrained(folder / "transformer")
        self.scheduler.save_pretrained(folder / "scheduler")
        if isinstance(self.codec, PatchCodec):
            save_file(self.codec.state_dict(), folder / "codec.safetensors")

    def velocity(
        self,
        latents: Tensor,
        sigma: Tensor,
        features: Tensor,
        grid: tuple[int, int],
        condition: Condition | None = None,
    ) -> Tensor:
        """Predicted flow velocity, noise − image.

        Args:
            latents: [N, h·w, channels] at noise level `sigma`.
            sigma: [N] in [0, 1]; 1 is pure noise.
            features: [N, h·w, feature channels].
            grid: (h, w).
            condition: of the prompts; None = that of a decoder without text encoders.
        Returns: [N, h·w, channels].
        Raises: ValueError if latents and features don't stand on the same grid.
        """
        if latents.shape[:2] != features.shape[:2] or latents.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"latents {tuple(latents.shape)} and features {tuple(features.shape)} don't fit a grid of {grid}")
        sequence, pooled = self._no_text(latents) if condition is None else condition
        distilled = self.transformer.config.guidance_embeds
        return self.transformer(
            hidden_states=torch.cat([latents, features], -1),
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            timestep=sigma,
            img_ids=_position_ids(grid, latents),
            txt_ids=latents.new_zeros(sequence.shape[1], 3),
            guidance=latents.new_full((len(latents),), self.guidance.distilled) if distilled else None,
            return_dict=False,
        )[0]

    def _guided(
        self, latents: Tensor, sigma: Tensor, features: Tensor, grid: tuple[int, int], prompts: Condition, empty: Condition
    ) -> Tensor:
        """`TrueGuidance`'s combination of three velocities, computed in one pass: [N, h·w, channels]."""
        sequence, pooled = (torch.cat([no, no, yes]) for no, yes in zip(empty, prompts, strict=True))
        looked_at = torch.cat([torch.zeros_like(features), features, features])
        together = self.velocity(latents.repeat(3, 1, 1), sigma.repeat(3), looked_at, grid, (sequence, pooled))
        nothing, tokens, both = together.chunk(3)
        return nothing + self.guidance.tokens * (tokens - nothing) + self.guidance.text * (both - tokens)

    def _no_text(self, like: Tensor) -> Condition:
        config = self.transformer.config
        count = len(like)
        return like.new_zeros(count, 1, config.joint_attention_dim), like.new_zeros(count, config.pooled_projection_dim)

    def _conditions(self, count: int, texts: list[str] | None, like: Tensor) -> tuple[Condition, Condition]:
        """Text conditions of the prompts and of empty prompts; the latter are encoded only where guidance wants them."""
        if self.prompt_encoder is None:
            return self._no_text(like), self._no_text(like)
        if texts is None or len(texts) != count:
            given = "none" if texts is None else str(len(texts))
            raise ValueError(f"this decoder has text encoders: give the prompts' texts, {count} of them, not {given}")
        wanted = [*texts, ""] if self.guidance.on else texts
        with self._at_work(self.prompt_encoder):
            sequence, pooled = (part.to(like) for part in self.prompt_encoder(wanted))
        prompts = (sequence[:count], pooled[:count])
        return prompts, (sequence[-1:].expand_as(prompts[0]), pooled[-1:].expand_as(prompts[1]))

    def features(self, tokens: Tensor) -> Tensor:
        """Token features as a sequence: [N, h, w] int64 → [N, h·w, feature channels]."""
        return self.projector.decode(tokens).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def forward(self, tokens: Tensor, texts: list[str] | None = None, seed: int = 0) -> Tensor:
        """Decodes tokens.

        Args:
            tokens: [N, h, w] int64.
            texts: N prompts, if the decoder has text encoders.
            seed: of the starting noise, which is the same for every image, so that an image depends on its tokens alone and
                not on its neighbours in the batch.
        Returns: uint8 [N, H, W, 3], on the tokens' device.
        Raises: ValueError for tokens of another rank or outside the codebook, or texts that are missing.
        """
        if tokens.dim() != 3:
            raise ValueError(f"tokens must be [N, h, w], not {tuple(tokens.shape)}")
        size = self.batch or max(len(tokens), 1)
        parts = [
            self._decode(tokens[start : start + size], None if texts is None else texts[start : start + size], seed)
            for start in range(0, max(len(tokens), 1), size)
        ]
        return torch.cat(parts)

    def _decode(self, tokens: Tensor, texts: list[str] | None, seed: int) -> Tensor:
        n, h, w = tokens.shape
        features = self.features(tokens)
        if self.works_on is not None:
            features = features.to(self.works_on)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, h * w, self.codec.channels, generator=generator)
        latents = noise.to(features).expand(n, -1, -1)
        prompts, empty = self._conditions(n, texts, features)
        self.scheduler.set_timesteps(
            sigmas=[1 - i / self.steps for i in range(self.steps)], device=features.device, mu=self._shift(h * w)
        )
        with self._at_work(self.transformer):
            for t in self.scheduler.timesteps:
                sigma = (t / self.scheduler.config.num_train_timesteps).to(features).expand(n)
                if self.guidance.on:
                    velocity = self._guided(latents, sigma, features, (h, w), prompts, empty)
                else:
                    velocity = self.velocity(latents, sigma, features, (h, w), prompts)
                latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]
        with self._at_work(self.codec):
            pixels = self.codec.decode(latents, (h, w)).float()
        images = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        return images.to(tokens.device)

    def _shift(self, length: int) -> float | None:
        """How far the schedule is shifted towards noise for an image of `length` latents, where the scheduler wants it.

        Source: FLUX.1's rule, linear between two lengths, as in diffusers' `calculate_shift`.
        """
        config = self.scheduler.config
        if not config.use_dynamic_shifting:
            return None
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        return float(config.base_shift + slope * (length - config.base_image_seq_len))

    @contextmanager
    def _at_work(self, part: Any) -> Iterator[None]:
        """Has a part on the working device for as long as it works."""
        if self.works_on is None or not isinstance(part, nn.Module):
            yield
            return
        part.to(self.works_on)
        yield
        part.to("cpu")


def flow_matching_loss(
    decoder: DiffusionDecoder, latents: Tensor, features: Tensor, grid: tuple[int, int], noise: Tensor, sigma: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity.

    L = mean (v(x_σ, σ) − (ε − x))², x_σ = (1 − σ)·x + σ·ε

    Args:
        latents: [N, h·w, channels], x.
        features: [N, h·w, feature channels].
        grid: (h, w).
        noise: like latents, ε.
        sigma: [N] in [0, 1].
    Returns: [] float.
    Raises: ValueError if noise and latents differ in shape.
    Source: arXiv:2210.02747, with the linear path of arXiv:2209.03003.
    """
    if noise.shape != latents.shape or sigma.shape != latents.shape[:1]:
        raise ValueError(f"noise {tuple(noise.shape)}, sigma {tuple(sigma.shape)} don't fit latents {tuple(latents.shape)}")
    s = sigma[:, None, None]
    velocity = decoder.velocity((1 - s) * latents + s * noise, sigma, features, grid)
    return (velocity - (noise - latents)).square().mean()


def _position_ids(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Flux's rotary position ids (0, row, column): [h·w, 3]."""
    h, w = grid
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([torch.zeros(h * w), rows.flatten(), columns.flatten()], -1).to(like)
