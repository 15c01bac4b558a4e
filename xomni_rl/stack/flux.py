"""FLUX.1's parts behind the decoder's interface: VAE, text encoders, and a transformer that has learned to see token features.

The published decoder is FLUX.1's transformer with one linear layer more, which maps token features to what is added to the
embedding of the latent at their position: W_x·latent + b_x + W_f·features. That is one linear layer on [latent, features],
[W_x, W_f] and b_x, which is how the class of the embedded stack has it; so the published tensors are joined when they are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor, nn

from xomni_rl.stack.decoder import DiffusionDecoder, TrueGuidance
from xomni_rl.stack.described import read_config
from xomni_rl.stack.flux_parts import load_prompt_encoder, load_schedule, load_vae
from xomni_rl.stack.image_tokenizer import VQProjector
from xomni_rl.stack.tensor_files import read_tensors, refuse_whole_numbers

LATENT_SIDE = 2
"""Latents of the VAE along each side of one that the transformer sees."""
QUANTISATIONS = ("int8", "int4")


class FluxCodec(nn.Module):
    """FLUX.1's VAE as a codec: 2 × 2 of its latents are one that the transformer sees.

    Args:
        vae: diffusers' autoencoder.
        tiling: whether large pictures are decoded in tiles that overlap: less memory, seams in rare cases.
    """

    def __init__(self, vae: AutoencoderKL, tiling: bool = False) -> None:
        super().__init__()
        self.vae = vae
        self.channels: int = vae.config.latent_channels * LATENT_SIDE**2
        if tiling:
            vae.enable_tiling()

    @property
    def pixels(self) -> int:
        """Pixels per latent that the transformer sees, along each side."""
        return int(LATENT_SIDE * 2 ** (len(self.vae.config.block_out_channels) - 1))

    def encode(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] → [N, h·w, channels], the mode of the VAE's distribution."""
        latents = self.vae.encode(pixels).latent_dist.mode()
        latents = (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return nn.functional.pixel_unshuffle(latents, LATENT_SIDE).flatten(2).transpose(1, 2)

    def decode(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """[N, h·w, channels] → [N, 3, H, W] in [-1, 1] (may overshoot)."""
        square = latents.transpose(1, 2).reshape(len(latents), self.channels, *grid)
        square = nn.functional.pixel_shuffle(square, LATENT_SIDE)
        square = square / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return self.vae.decode(square, return_dict=False)[0]


def joined_tensors(state: Mapping[str, Tensor], names: set[str], width: int, features: int) -> dict[str, Tensor]:
    """Published tensors with the layer that injects features joined to the one that embeds latents.

    Args:
        state: of the published transformer.
        names: the tensors that FLUX.1's transformer has.
        width: of the transformer.
        features: channels of a token's features.
    Returns: those of a transformer whose input is [latent, features].
    Raises: ValueError if there is no such layer, more than one, or a tensor is left over.
    """
    extra = {name: tensor for name, tensor in state.items() if name not in names}
    matrices = [name for name, tensor in extra.items() if tuple(tensor.shape) == (width, features)]
    if len(matrices) != 1:
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in extra.items()) or "none"
        raise ValueError(
            f"the decoder needs one linear layer [{width}, {features}] for token features beside FLUX.1's own; found: {found}"
        )
    matrix = extra.pop(matrices[0])
    bias = extra.pop(matrices[0].removesuffix("weight") + "bias", None)
    if extra:
        raise ValueError(f"the decoder has tensors that FLUX.1 does not have: {', '.join(sorted(extra)[:4])}")
    joined = {name: tensor for name, tensor in state.items() if name in names}
    joined["x_embedder.weight"] = torch.cat([joined["x_embedder.weight"], matrix], 1)
    if bias is not None:
        joined["x_embedder.bias"] = joined["x_embedder.bias"] + bias
    return joined


def transformer_config(folder: Path) -> dict[str, Any]:
    """What FLUX.1's transformer is made of, from a folder's config.json; other keys are left out."""
    config = read_config(folder / "config.json")
    known = inspect.signature(FluxTransformer2DModel.__init__).parameters
    return {"out_channels": None} | {key: value for key, value in config.items() if key in known and not key.startswith("_")}


def new_transformer(config: Mapping[str, Any], features: int = 0) -> FluxTransformer2DModel:
    """A transformer of that configuration on the meta device, with `features` more input channels."""
    latents = int(config.get("in_channels", 64))
    own = {**config, "in_channels": latents + features, "out_channels": config.get("out_channels") or latents}
    with torch.device("meta"):
        return FluxTransformer2DModel(**own)


def load_transformer(folder: Path, features: int, dtype: torch.dtype) -> FluxTransformer2DModel:
    """The published decoder's transformer.

    Args:
        folder: with config.json and safetensors, in one file or in shards.
        features: channels of a token's features.
        dtype: of the weights.
    Raises: OSError or ValueError for a missing, damaged or unfitting file.
    """
    config = transformer_config(folder)
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    names = set(new_transformer(config).state_dict())
    read = read_tensors(folder)
    refuse_whole_numbers([name for name, tensor in read.items() if not tensor.is_floating_point()], folder)
    tensors = {name: tensor.to(dtype) for name, tensor in read.items()}
    transformer = new_transformer(config, features)
    state = joined_tensors(tensors, names, width, features)
    missing = transformer.state_dict().keys() - state.keys()
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(sorted(missing)[:4])}")
    transformer.load_state_dict(state, assign=True)
    return transformer.eval()


def load_flux_decoder(
    folder: Path,
    flux: Path,
    projector: VQProjector,
    settings: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    *,
    batch: int | None = None,
    tiling: bool = False,
    works_on: torch.device | None = None,
    quantisation: str | None = None,
) -> DiffusionDecoder:
    """The published decoder with FLUX.1's VAE and text encoders.

    Args:
        folder: of the published transformer.
        flux: a FLUX.1-dev folder in diffusers' layout.
        projector: gives the features of tokens.
        settings: `vision_config.decoder` of the checkpoint: num_inference_steps, cfg_scale, cfg_scale_2.
        dtype: of all weights.
        batch, works_on: see `DiffusionDecoder`.
        tiling: see `FluxCodec`.
        quantisation: "int8" or "int4": the transformer's weights by torchao; None = as they are.
    Raises: OSError, ValueError or RuntimeError for a missing, damaged or unfitting file; ImportError without torchao.
    """
    transformer = load_transformer(folder, projector.config["z_channels"], dtype)
    if quantisation is not None:
        quantise(transformer, quantisation)
    return DiffusionDecoder(
        transformer,
        load_schedule(flux),
        projector,
        FluxCodec(load_vae(flux, dtype), tiling),
        int(settings.get("num_inference_steps", 28)),
        load_prompt_encoder(flux, dtype),
        guidance=TrueGuidance(float(settings.get("cfg_scale", 1.0)), float(settings.get("cfg_scale_2", 1.0))),
        batch=batch,
        works_on=works_on,
    )


def quantise(transformer: nn.Module, bits: str) -> None:
    """Weights of linear layers as integers, in place; activations stay as they are.

    Raises: ValueError for an unknown choice; ImportError without torchao.
    """
    if bits not in QUANTISATIONS:
        raise ValueError(f'quantisation must be one of {", ".join(QUANTISATIONS)}, not "{bits}"')
    try:
        from torchao import quantization  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError("quantisation needs torchao: pip install 'xomni-rl[quantisation]'") from error
    config = quantization.Int8WeightOnlyConfig() if bits == "int8" else quantization.Int4WeightOnlyConfig()
    quantization.quantize_(transformer, config)
