"""SigLIP vision encoders from published weights, under timm's tensor names or transformers'.

X-Omni's encoder is SigLIP2-g; its file has timm's names. Its class here is transformers', the one of the embedded stack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

HEADS = {
    "base": 12,
    "large": 16,
    "so400m": 16,
    "giant": 16,
}
"""Attention heads by size, which no tensor shows; the size is a part of the encoder's published name."""
PREFIXES = ("visual.trunk.", "vision_tower.", "vision_model.", "trunk.", "vit.", "model.")
UNUSED = ("attn_pool.", "head.", "fc_norm.")
"""Pooling and projection: the image tokenizer looks at patches."""
_RENAMED = {
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


class AntialiasedEmbeddings(SiglipVisionEmbeddings):
    """Patch embeddings whose positions are resized with antialiasing, as timm resizes them; transformers does without.

    It matters below the size trained at: the positions of several patches fall together there.
    """

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Position embeddings of an image: [1, h·w, hidden].

        Args:
            embeddings: [N, h·w, hidden], looked at for its dtype.
            height, width: of the image in px, multiples of the patch.
        """
        rows, columns = height // self.patch_size, width // self.patch_size
        table = self.position_embedding.weight
        side = round(table.shape[0] ** 0.5)
        if (rows, columns) == (side, side):
            return table[None]
        square = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
        resized = nn.functional.interpolate(square, size=(rows, columns), mode="bicubic", antialias=True)
        return resized.flatten(2).transpose(1, 2).to(embeddings.dtype)


def new_vision(config: SiglipVisionConfig) -> SiglipVisionModel:
    """A vision encoder with random weights; `config.antialias_positions` chooses how positions are resized."""
    vision = SiglipVisionModel(config)
    if getattr(config, "antialias_positions", False):
        vision.embeddings = AntialiasedEmbeddings(config)
    return vision


def heads_of(name: str) -> int:
    """Attention heads of an encoder by its published name, such as "siglip2_giant_patch16_384".

    Raises: ValueError if no known size is in the name.
    """
    for size, heads in HEADS.items():
        if size in name:
            return heads
    raise ValueError(
        f'the vision encoder "{name}" is of no known size ({", ".join(HEADS)}): '
        "write its number of attention heads as num_heads into vision_config.encoder of config.json"
    )


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under transformers' names.

    Args:
        state: of a vision encoder, under timm's names or transformers', with any of the usual prefixes.
    Returns: without pooling head; query, key and value apart.
    Raises: ValueError naming the first tensor that no rule fits.
    """
    found: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name = _without_prefix(full)
        if name.startswith(UNUSED):
            continue
        if name == "pos_embed":
            found["embeddings.position_embedding.weight"] = tensor.reshape(-1, tensor.shape[-1])
        elif name.startswith(("embeddings.", "encoder.", "post_layernorm.")):
            found[name] = tensor
        elif match := _BLOCK.fullmatch(name):
            found |= _block(int(match[1]), match[2], match[3], tensor, full)
        else:
            module, _, kind = name.rpartition(".")
            if module not in _RENAMED:
                raise ValueError(f"{full} belongs to no SigLIP vision encoder")
            found[f"{_RENAMED[module]}.{kind}"] = tensor
    return found


def vision_config(state: Mapping[str, Tensor], heads: int, activation: str = "gelu_pytorch_tanh") -> SiglipVisionConfig:
    """The configuration that renamed tensors have, read off their shapes.

    Args:
        state: as `renamed` gives it.
        heads: attention heads.
        activation: of the MLPs.
    Raises: ValueError if a tensor is missing that says the size, or the position table is not square.
    """
    try:
        patch = state["embeddings.patch_embedding.weight"].shape
        positions = state["embeddings.position_embedding.weight"].shape[0]
        intermediate = state["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"the vision encoder has no {error.args[0]}") from error
    side = round(positions**0.5)
    if side * side != positions:
        raise ValueError(f"{positions} position embeddings are no square")
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers."))
    return SiglipVisionConfig(
        hidden_size=patch[0],
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch[2],
        image_size=side * patch[2],
        hidden_act=activation,
        vision_use_head=False,
        antialias_positions=True,
    )


def _without_prefix(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _block(index: int, module: str, kind: str, tensor: Tensor, full: str) -> dict[str, Tensor]:
    """A tensor of a timm block; "attn.qkv" becomes three."""
    layer = f"encoder.layers.{index}"
    if module == "attn.qkv":
        parts = torch.chunk(tensor, 3)
        return {f"{layer}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    if module not in _RENAMED:
        raise ValueError(f"{full} belongs to no SigLIP vision encoder")
    return {f"{layer}.{_RENAMED[module]}.{kind}": tensor}
