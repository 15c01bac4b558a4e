"""Writes a tiny checkpoint in the published layout, and a tiny FLUX.1 folder: every component, random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, SiglipVisionConfig, SiglipVisionModel, T5Config, T5EncoderModel

from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.stack.image_tokenizer import VQProjector
from xomni_rl.stack.text import train_text_tokenizer

FEATURES, CODES, CODE_SIZE = 32, 64, 24
LATENTS = 4
VOCABULARY = 384


def write_checkpoint(folder: Path, **decoder_settings: Any) -> Path:
    """The checkpoint: model in several shards, tokenizer, encoder with timm's names, pickled projector, decoder."""
    torch.manual_seed(0)
    settings = {"model_path": "decoder", "num_inference_steps": 2, "cfg_scale": 1.0, "cfg_scale_2": 1.0, "upscale_factor": 16}
    vision = {
        "dtype": "float32",
        "transform": {"short_size": 32, "long_size": 96, "patch_size": 16, "min_short_size": 16, "max_aspect_ratio": 3.0},
        "encoder": {
            "siglip_name": "siglip2_giant_patch16_384",
            "siglip_path": "vision/siglip.safetensors",
            "projector_path": "vision/projector.pth",
            "z_channels": FEATURES,
            "codebook_size": CODES,
            "codebook_dim": CODE_SIZE,
            "num_heads": 2,
        },
        "decoder": settings | decoder_settings,
    }
    config = XOmniConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        mm_vocab_size=CODES + 8,
        image_vocab_size=CODES,
        num_mm_adap_layers=1,
        num_mm_head_layers=1,
        max_position_embeddings=512,
        vision_config=vision,
        initializer_range=0.1,
    )
    XOmniForCausalLM(config).save_pretrained(folder, max_shard_size="60KB")
    text = train_text_tokenizer(["a red sign"], VOCABULARY, CODES, config.mm_special_tokens or ())
    text.save_pretrained(folder)
    (folder / "vision").mkdir()
    save_file(timm_names(tiny_vision()), folder / "vision" / "siglip.safetensors")
    torch.save(VQProjector(FEATURES, CODES, CODE_SIZE).state_dict(), folder / "vision" / "projector.pth")
    write_decoder(folder / "decoder")
    return folder


def tiny_vision() -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=FEATURES,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=16,
        image_size=64,
        vision_use_head=False,
    )
    return SiglipVisionModel(config).eval()


def timm_names(vision: SiglipVisionModel) -> dict[str, torch.Tensor]:
    """The encoder's tensors as timm names and shapes them."""
    state = vision.state_dict()
    positions = state["embeddings.position_embedding.weight"]
    found = {"pos_embed": positions[None].clone()}
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embedding.{kind}"]
        found[f"norm.{kind}"] = state[f"post_layernorm.{kind}"]
        for index in range(vision.config.num_hidden_layers):
            own, theirs = f"encoder.layers.{index}", f"blocks.{index}"
            projections = [state[f"{own}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            found[f"{theirs}.attn.qkv.{kind}"] = torch.cat(projections)
            found[f"{theirs}.attn.proj.{kind}"] = state[f"{own}.self_attn.out_proj.{kind}"]
            for number in "12":
                found[f"{theirs}.norm{number}.{kind}"] = state[f"{own}.layer_norm{number}.{kind}"]
                found[f"{theirs}.mlp.fc{number}.{kind}"] = state[f"{own}.mlp.fc{number}.{kind}"]
    return found


def tiny_transformer() -> FluxTransformer2DModel:
    """FLUX.1-dev's transformer, guidance embedding included, with two blocks."""
    return FluxTransformer2DModel(
        in_channels=LATENTS * 4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def write_decoder(folder: Path) -> None:
    """The transformer's tensors and one linear layer more, in two shards with an index."""
    transformer = tiny_transformer()
    transformer.save_config(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"_class_name": "FluxTransformer2DModelWithSigLIP", "siglip_channels": FEATURES}
    (folder / "config.json").write_text(json.dumps(config))
    state = transformer.state_dict() | {"siglip_embedder.weight": torch.randn(transformer.inner_dim, FEATURES) * 0.2}
    names = sorted(state)
    shards = {"diffusion-00001-of-00002.safetensors": names[::2], "diffusion-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: state[name].contiguous() for name in held}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "diffusion.safetensors.index.json").write_text(json.dumps(index))


def write_flux(folder: Path) -> Path:
    """VAE, both text encoders with their tokenizers, and the scheduler of FLUX.1-dev."""
    torch.manual_seed(1)
    blocks = 4  # three halvings: 8 px per latent of the VAE
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        latent_channels=LATENTS,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")
    clip = CLIPTextConfig(vocab_size=500, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(clip).save_pretrained(folder / "text_encoder")
    t5 = T5Config(vocab_size=500, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(t5).save_pretrained(folder / "text_encoder_2")
    text = train_text_tokenizer(["a red sign"], VOCABULARY, 8, ("<SOM>", "<EOM>", "<IMAGE>"))
    for name, length in (("tokenizer", 77), ("tokenizer_2", 512)):
        text.model_max_length = length
        text.save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    ).save_pretrained(folder / "scheduler")
    return folder
