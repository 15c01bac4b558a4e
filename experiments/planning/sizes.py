"""How large the parts of a stack are: counted on the meta device or in the files' headers, never loaded.

The full-size configuration is the one that a plan without the checkpoint uses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from xomni_rl.policies.lora import TARGETS
from xomni_rl.stack.autoregressive import XOmniConfig, XOmniForCausalLM
from xomni_rl.weights import EMBEDDED

FULL_SIZE: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 36,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "num_mm_adap_layers": 4,
    "num_mm_head_layers": 4,
    "mm_vocab_size": 16448,
    "image_vocab_size": 16384,
}
"""Qwen2.5-7B with four layers for images below its 28 and four above (arXiv:2507.22058, section 3.2)."""
FULL_VISION = {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16}
"""SigLIP2-g at patches of 16 px, 384 px."""
FULL_PROJECTOR = {"z_channels": 1536, "codebook_size": 16384, "codebook_dim": 2048}
FULL_DECODER_STEPS = 28
"""Euler steps of FLUX.1-dev where nobody says otherwise; an assumption."""
FLUX_TEXT_LENGTH = 512


@dataclass(frozen=True)
class ModelSizes:
    """An autoregressive model in numbers.

    Attributes:
        layers, hidden, intermediate, heads, kv_heads, head_dim, images: of `XOmniConfig`; `images` is the image vocabulary V.
        parameters: elements of all weights.
        unreached: elements that scoring image tokens does not reach, so that they get neither gradient nor moments: the text
            head.
        body: elements of the decoder layers, which every token passes through.
        largest: elements of the largest trained tensor.
        linear: last name of a linear layer → (how many, in, out), for adapters.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    images: int
    parameters: int
    unreached: int
    body: int
    largest: int
    linear: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: XOmniConfig) -> ModelSizes:
        """Counts the tensors of `XOmniForCausalLM` on the meta device, where they take no memory."""
        with torch.device("meta"):
            model = XOmniForCausalLM(config)
        named = {name: parameter.numel() for name, parameter in model.named_parameters()}
        unreached = {name for name in named if name.startswith("lm_head.")}
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            images=config.image_vocab_size,
            parameters=sum(named.values()),
            unreached=sum(named[name] for name in unreached),
            body=sum(count for name, count in named.items() if ".layers." in name),
            largest=max(count for name, count in named.items() if name not in unreached),
            linear=_linear_layers(model),
        )

    def adapters(self, rank: int, targets: Sequence[str] = TARGETS, full: Sequence[str] = ()) -> int:
        """Elements of low-rank adapters: rank · (in + out) for each layer that gets one (arXiv:2106.09685), and in · out for
        each that is trained in `full`, whose first weights are kept beside."""
        chosen = [self.linear[name] for name in targets if name in self.linear]
        whole = sum(count * into * out for count, into, out in (self.linear[name] for name in full if name in self.linear))
        return whole + sum(count * rank * (into + out) for count, into, out in chosen)

    @property
    def joined(self) -> int:
        """Elements that `IncrementalSampler` copies: q, k, v with biases and gate, up of each layer, and the image head."""
        projected = (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = self.hidden * projected + projected + 2 * self.hidden * self.intermediate
        return self.layers * layer + self.images * self.hidden

    @property
    def unjoined(self) -> int:
        """Elements that it reads in place unless they have adapters: the output and down projections of each layer."""
        return self.layers * self.hidden * (self.heads * self.head_dim + self.intermediate)


@dataclass(frozen=True)
class PartSizes:
    """The parts of a stack that are not trained.

    Attributes:
        tokenizer: elements of ViT and projector.
        transformer, encoders, codec: elements of the decoder's transformer, its text encoders and its VAE (or linear codec).
        width, blocks: of the transformer.
        text: text positions beside an image's in the transformer.
        batch: images decoded at a time; None = all of a rollout.
        steps: Euler steps.
        pixels: pixels along a token's side.
        vae_channels: channels of the VAE at full resolution; 0 = no VAE.
        default_size: (height, width) px.
    """

    tokenizer: int
    transformer: int
    encoders: int
    codec: int
    width: int
    blocks: int
    text: int
    batch: int | None
    steps: int
    pixels: int
    vae_channels: int
    default_size: tuple[int, int]


def model_config(path: str) -> XOmniConfig | None:
    """Configuration of the autoregressive model of a stack folder or of a published checkpoint; None if nothing is there."""
    if path in EMBEDDED:
        with as_file(files("xomni_rl.weights") / EMBEDDED[path]) as folder:
            return model_config(str(folder))
    for file in (Path(path) / "autoregressive" / "config.json", Path(path) / "config.json"):
        if file.is_file():
            return XOmniConfig(**json.loads(file.read_text(encoding="utf-8")))
    return None


def part_sizes(path: str) -> PartSizes:
    """The other parts of a stack folder from its files' headers; of anything else those of the full size."""
    if path in EMBEDDED:
        with as_file(files("xomni_rl.weights") / EMBEDDED[path]) as folder:
            return part_sizes(str(folder))
    folder = Path(path)
    if not (folder / "stack.json").is_file():
        return full_size_parts()
    described = json.loads((folder / "stack.json").read_text(encoding="utf-8"))
    if "shares" in described:
        return replace(part_sizes(described["shares"]), default_size=tuple(described["default_size"]))
    transformer = json.loads((folder / "decoder/transformer/config.json").read_text(encoding="utf-8"))
    vision = json.loads((folder / "vision/config.json").read_text(encoding="utf-8"))
    height, width = described["default_size"]
    return PartSizes(
        tokenizer=_elements(folder / "vision") + _elements(folder / "projector"),
        transformer=_elements(folder / "decoder/transformer"),
        encoders=0,
        codec=_elements(folder / "decoder", deep=False),
        width=transformer["num_attention_heads"] * transformer["attention_head_dim"],
        blocks=transformer["num_layers"] + transformer["num_single_layers"],
        text=1,
        batch=None,
        steps=described["decoder_steps"],
        pixels=vision["patch_size"],
        vae_channels=0,
        default_size=(height, width),
    )


@cache
def full_size_parts() -> PartSizes:
    """SigLIP2-g, projector and FLUX.1-dev (transformer, T5-XXL, CLIP-L, VAE) counted on the meta device."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, SiglipVisionConfig, SiglipVisionModel, T5Config, T5EncoderModel

    from xomni_rl.stack.image_tokenizer import VQProjector

    t5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    vision = {**FULL_VISION, "patch_size": 16, "image_size": 384, "vision_use_head": False}
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        injection = nn.Linear(FULL_PROJECTOR["z_channels"], width)
        encoders = [T5EncoderModel(T5Config(vocab_size=32128, **t5)), CLIPTextModel(CLIPTextConfig(**clip))]
        tokenizer = [SiglipVisionModel(SiglipVisionConfig(**vision)), VQProjector(**FULL_PROJECTOR)]
        codec = AutoencoderKL(**vae)
    return PartSizes(
        tokenizer=_count(*tokenizer),
        transformer=_count(transformer, injection),
        encoders=_count(*encoders),
        codec=_count(codec),
        width=width,
        blocks=transformer.config.num_layers + transformer.config.num_single_layers,
        text=FLUX_TEXT_LENGTH,
        batch=None,
        steps=FULL_DECODER_STEPS,
        pixels=16,
        vae_channels=128,
        default_size=(1152, 1152),
    )


@cache
def full_size_model() -> ModelSizes:
    """The published autoregressive model."""
    return ModelSizes.of(XOmniConfig(**FULL_SIZE))


def _count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _linear_layers(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            last = name.rpartition(".")[2]
            found[last] = (found.get(last, (0, 0, 0))[0] + 1, module.in_features, module.out_features)
    return found


def _elements(folder: Path, *, deep: bool = True) -> int:
    """Elements of all tensors of a folder's safetensors, from their headers."""
    total = 0
    for path in sorted(folder.rglob("*.safetensors") if deep else folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 — it is no mapping
                total += torch.Size(tensors.get_slice(name).get_shape()).numel()
    return total
