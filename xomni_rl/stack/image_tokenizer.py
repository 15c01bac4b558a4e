"""The semantic image tokenizer: ViT features, a convolution, and the nearest L2-normalised codebook entry.

Source: arXiv 2507.22058, section 3.1; tensor names of the projector as in the public checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from xomni_rl.stack.siglip import new_vision
from xomni_rl.stack.tensor_files import compare_shapes, refuse_whole_numbers


class ResidualBlock(nn.Module):
    """Pre-norm residual block: x + conv(gelu(norm(conv(gelu(norm(x)))))), 3×3, GroupNorm of 32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, channels, eps=1e-5)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(32, channels, eps=1e-5)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(nn.functional.gelu(self.norm1(x)))
        return x + self.conv2(nn.functional.gelu(self.norm2(h)))


class VectorQuantizer(nn.Module):
    """A codebook; holds `embedding` under the checkpoint's name."""

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, codebook_dim)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the entry with the largest cosine similarity.

        Args:
            vectors: [M, codebook_dim].
        Returns: [M] int64.
        """
        codes = nn.functional.normalize(self.embedding.weight, dim=-1)
        return (nn.functional.normalize(vectors, dim=-1) @ codes.T).argmax(-1)


class VQProjector(nn.Module):
    """Vector-quantising convolutional projector between ViT features and tokens.

    Encoding: `quant_conv` 1×1 → nearest code. Decoding: the raw codebook row (not normalised) → `post_quant_conv` 1×1 →
    `post_conv`, two residual blocks.
    """

    def __init__(self, z_channels: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.config = {"z_channels": z_channels, "codebook_size": codebook_size, "codebook_dim": codebook_dim}
        self.quant_conv = nn.Conv2d(z_channels, codebook_dim, 1)
        self.quantize = VectorQuantizer(codebook_size, codebook_dim)
        self.post_quant_conv = nn.Conv2d(codebook_dim, z_channels, 1)
        self.post_conv = nn.Sequential(ResidualBlock(z_channels), ResidualBlock(z_channels))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VQProjector:
        """Loads `config.json` and `projector.safetensors` from a folder.

        Raises: FileNotFoundError, ValueError (a tensor is missing, left over or of another shape), safetensors' error on
            a damaged file.
        """
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text())
        projector = cls(config["z_channels"], config["codebook_size"], config["codebook_dim"])
        load_exactly(projector, load_file(folder / "projector.safetensors"), str(folder / "projector.safetensors"))
        return projector.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=1))
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "projector.safetensors")

    def project(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features in the codebook's space.

        Args:
            features: [N, h·w, z_channels], row-major.
            grid: (h, w).
        Returns: [N, codebook_dim, h, w].
        Raises: ValueError if the features don't fill the grid.
        """
        n, length, channels = features.shape
        h, w = grid
        if length != h * w:
            raise ValueError(f"features {tuple(features.shape)} don't fill a grid of {h}×{w}")
        return self.quant_conv(features.transpose(1, 2).reshape(n, channels, h, w))

    def encode(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens of ViT features: [N, h·w, z_channels] → [N, h, w] int64."""
        z = self.project(features, grid)
        n, dim, h, w = z.shape
        return self.quantize.nearest(z.permute(0, 2, 3, 1).reshape(-1, dim)).view(n, h, w)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Features of codebook vectors: [N, codebook_dim, h, w] → [N, z_channels, h, w]."""
        return self.post_conv(self.post_quant_conv(codes))

    def decode(self, tokens: Tensor) -> Tensor:
        """Token features, the decoder's condition: [N, h, w] int64 → [N, z_channels, h, w].

        Raises: ValueError for a token outside the codebook.
        """
        size = self.config["codebook_size"]
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= size):
            raise ValueError(f"token {int(tokens.max())} or {int(tokens.min())} is outside the codebook of {size}")
        return self.decode_codes(self.quantize.embedding(tokens).permute(0, 3, 1, 2))


class SemanticImageTokenizer(nn.Module):
    """Images → tokens: a SigLIP-style ViT, then the projector.

    The ViT's position embedding is interpolated, so that any size that is a multiple of the patch works.
    """

    def __init__(self, vision: SiglipVisionModel, projector: VQProjector) -> None:
        super().__init__()
        self.vision = vision
        self.projector = projector

    @classmethod
    def from_config(cls, vision: dict[str, Any], projector: dict[str, int]) -> SemanticImageTokenizer:
        config = SiglipVisionConfig(**{"vision_use_head": False, **vision})
        return cls(new_vision(config), VQProjector(**projector))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SemanticImageTokenizer:
        """Loads `vision/` (transformers) and `projector/` from a folder. Raises: see `VQProjector.from_pretrained`."""
        folder = Path(folder)
        config = SiglipVisionConfig.from_pretrained(folder / "vision")
        vision = new_vision(config)
        load_exactly(vision, load_file(folder / "vision/model.safetensors"), str(folder / "vision/model.safetensors"))
        return cls(vision.eval(), VQProjector.from_pretrained(folder / "projector"))

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        (folder / "vision").mkdir(parents=True, exist_ok=True)
        self.vision.config.save_pretrained(folder / "vision")
        state = {k: v.contiguous() for k, v in self.vision.state_dict().items()}
        save_file(state, folder / "vision/model.safetensors")
        self.projector.save_pretrained(folder / "projector")

    @property
    def patch_size(self) -> int:
        """Pixels per token, along each side."""
        return self.vision.config.patch_size

    @property
    def codebook_size(self) -> int:
        return self.projector.config["codebook_size"]

    def features(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """ViT features before quantising.

        Args:
            pixels: [N, 3, H, W] float in [-1, 1]; H and W multiples of `patch_size`.
        Returns: [N, h·w, z_channels] and the grid (h, w).
        Raises: ValueError for another shape.
        """
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels must be [N, 3, H, W], not {tuple(pixels.shape)}")
        h, w = pixels.shape[2] / self.patch_size, pixels.shape[3] / self.patch_size
        if h % 1 or w % 1:
            raise ValueError(f"image {tuple(pixels.shape[2:])} is no multiple of the token size {self.patch_size} px")
        hidden = self.vision(pixels, interpolate_pos_encoding=True).last_hidden_state
        return hidden, (int(h), int(w))

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens of images: [N, 3, H, W] float in [-1, 1] → [N, h, w] int64."""
        features, grid = self.features(pixels)
        return self.projector.encode(features, grid)


def load_exactly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Loads a state dict that must fit the module name by name and shape by shape.

    Raises: ValueError naming the file and the first tensors that don't fit, or hold whole numbers.
    """
    own = module.state_dict()
    found, wanted = ({name: tuple(each.shape) for name, each in tensors.items()} for tensors in (state, own))
    compare_shapes(found, wanted, source)
    floating = (name for name, tensor in own.items() if tensor.is_floating_point())
    refuse_whole_numbers([name for name in floating if not state[name].is_floating_point()], source)
    module.load_state_dict(state)


def to_pixels(images: Any, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [N, H, W, 3] (array or tensor) → float [N, 3, H, W] in [-1, 1] (mean = std = 0.5).

    Raises: ValueError for another shape or dtype.
    """
    tensor = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    if tensor.dim() != 4 or tensor.shape[-1] != 3 or tensor.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 [N, H, W, 3], not {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.permute(0, 3, 1, 2).to(device, dtype) / 127.5 - 1
