"""Sizes of the embedded stack: the same classes as the full model, small enough for two CPU cores."""

from __future__ import annotations

from typing import Any

VOCAB_SIZE = 384
IMAGE_VOCAB_SIZE = 512
TOKEN_SIZE = 8
DEFAULT_SIZE = (32, 96)

AUTOREGRESSIVE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "mm_vocab_size": IMAGE_VOCAB_SIZE + 16,
    "image_vocab_size": IMAGE_VOCAB_SIZE,
    "num_mm_adap_layers": 1,
    "num_mm_head_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": TOKEN_SIZE,
}
PROJECTOR = {"z_channels": 128, "codebook_size": IMAGE_VOCAB_SIZE, "codebook_dim": 16}
DECODER: dict[str, Any] = {
    "out_channels": 64,
    "num_layers": 0,
    "num_single_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 5,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 12, 16),
}
DECODER_STEPS = 1
