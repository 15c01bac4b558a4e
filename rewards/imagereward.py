"""Would people prefer this image for this prompt? ImageReward, a BLIP whose text tower reads the prompt beside the image.

Scores      (MLP output − 0.16717) / 1.03334, raw as published: 0 is the mean over its authors' images, 1 one standard
            deviation; −2.3 to 2 for most generated images; higher is better. Its last layers are linear: it has no bound.
Units       others return it raw too; some clip it to ±2 or add an offset to make it positive. We don't.
Not applicable  never: every prompt has a text. It reads 35 tokens, so long prompts are cut, and the detail says so.
Cost        one ViT-L/16 forward at 224 px and one BERT-base forward per image.
Weights     zai-org/ImageReward (formerly THUDM/ImageReward), Apache-2.0: `ImageReward.pt`, a torch file of plain tensors, read
            without executing anything. Sizes are inferred from the tensors. The tokenizer is bert-base-uncased, Apache-2.0.
Ways to hack it  close-ups of one large subject, saturated and glossy; overexposure; it often cannot count or spell. Details
            below 224 px and everything outside the centre square are invisible to it. Hold out another preference model.
Source      arXiv:2304.05977. Its package is not needed: BLIP by transformers' modules, equal to the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, RewardResult, RewardUnavailableError, rewards
from xomni_rl.rewards.models import (
    Placement,
    SharedModel,
    Source,
    check_batch_size,
    find_weights,
    finite_result,
    load_tensors,
    read_tensors,
    shared_model,
    tokenizer_folder,
)
from xomni_rl.rewards.pixels import clip_pixels, disc_and_noise, round_half_even

if TYPE_CHECKING:
    import torch
    from torch import nn

SOURCE = Source(
    what="ImageReward.pt",
    where="https://huggingface.co/zai-org/ImageReward",
    licence="Apache-2.0",
    repo="zai-org/ImageReward",
    file="ImageReward.pt",
)
TOKENIZER = "google-bert/bert-base-uncased"
MAX_TOKENS = 35
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
HEAD_WIDTH = 64
"""Of every attention head in BLIP's two towers; the only size that no tensor's shape tells."""

# Published name → transformers' name, applied in this order.
_VISION_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("attn.qkv", "self_attn.qkv"),
    ("attn.proj", "self_attn.projection"),
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
)


@rewards.register("imagereward")
class ImageRewardReward(Reward):
    """Human preference by ImageReward 1.0: standardised, raw.

    Args:
        weights: path of ImageReward.pt, or a hub repository that holds it; None = zai-org/ImageReward.
        tokenizer: folder or hub name of bert-base-uncased's tokenizer.
        device, dtype, offload: see `Placement`.
        batch_size: images per forward pass.
    Raises: ValueError for an unknown dtype or a batch size below 1.
    """

    name = "imagereward"
    version = "1"
    range = (-np.inf, np.inf)
    needs = ("text",)
    cost = "one ViT-L/16 forward at 224 px and one BERT-base forward per image"

    def __init__(
        self,
        weights: str | None = None,
        tokenizer: str = TOKENIZER,
        device: str = "auto",
        dtype: str = "float32",
        offload: bool = False,
        batch_size: int = 32,
    ) -> None:
        check_batch_size(batch_size)
        self.weights, self.tokenizer, self.batch_size = weights, tokenizer, batch_size
        self.placement = Placement(device, dtype, offload)

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `cut`: whether the prompt is longer than the model reads.

        Raises: RewardError for samples whose score is not finite.
        """
        import torch

        if not images:
            return RewardResult(np.zeros(0, np.float32), [])
        shared = self._model()
        texts = [prompt.text for prompt in prompts]
        outputs: list[torch.Tensor] = []
        with shared.use() as device:
            for start in range(0, len(images), self.batch_size):
                batch = slice(start, start + self.batch_size)
                outputs.append(_forward(shared, images[batch], texts[batch], device))
        scores = (torch.cat(outputs).cpu().double().numpy() - MEAN) / DEVIATION
        tokenizer = shared.extras["tokenizer"]
        lengths = {text: len(tokenizer(text, verbose=False).input_ids) for text in texts}
        return finite_result(self.name, scores, [{"cut": lengths[text] > MAX_TOKENS} for text in texts])

    def load(self) -> None:
        """Loads model and tokenizer. Raises: RewardUnavailableError."""
        self._model()

    def files(self) -> tuple[Path, ...]:
        """The checkpoint, and the tokenizer's files if it is a folder. Raises: RewardUnavailableError."""
        folder = Path(self.tokenizer)
        vocabulary = sorted(path for path in folder.glob("*") if path.suffix in (".json", ".txt")) if folder.is_dir() else []
        return (find_weights(self.name, self.weights, SOURCE), *vocabulary)

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A red disc on white, and noise, for a prompt that asks for the disc."""
        return (*disc_and_noise(), Prompt(id="self-check", text="a red circle on a white background"))

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        """Writes `ImageReward.pt` with two layers per tower, random, under the published names, and a tokenizer of letters."""
        import torch
        from transformers import BertTokenizer

        characters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{letter}" for letter in characters)]
        folder.mkdir(parents=True, exist_ok=True)
        BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder / "tokenizer")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = _new_module(_tiny_sizes(len(words) + 2))
            with torch.no_grad():
                for parameter in module.parameters():  # many start at 0 or 1: biases, norms, class token, positions
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        torch.save(_published_names(module.state_dict()), folder / "ImageReward.pt")
        return {"weights": str(folder / "ImageReward.pt"), "tokenizer": str(folder / "tokenizer")}

    def _model(self) -> SharedModel:
        path = find_weights(self.name, self.weights, SOURCE)
        return shared_model(("imagereward", str(path), self.tokenizer), self.placement, lambda: self._loaded(path))

    def _loaded(self, path: Path) -> tuple[nn.Module, dict[str, Any]]:
        tensors = own_names(read_tensors(self.name, path, SOURCE))
        try:
            sizes = inferred_sizes(tensors)
        except (KeyError, ValueError, IndexError) as error:
            raise RewardUnavailableError(
                f'reward "{self.name}": {path} is not {SOURCE.what} ({error}); {SOURCE.remedy("weights")}'
            ) from error
        tokenizer = self._tokenizer()
        if len(tokenizer) != sizes["text"]["vocab_size"]:
            raise RewardUnavailableError(
                f'reward "{self.name}": the tokenizer {self.tokenizer} has {len(tokenizer)} words with [DEC] and [ENC], but '
                f"{path} was trained with {sizes['text']['vocab_size']}; give the folder of {TOKENIZER} as tokenizer=PATH"
            )
        module = _new_module(sizes)
        load_tensors(self.name, module, tensors, path, SOURCE)
        return module, {"tokenizer": tokenizer}

    def _tokenizer(self) -> Any:
        from transformers import BertTokenizer

        try:
            tokenizer = BertTokenizer.from_pretrained(tokenizer_folder(self.tokenizer), local_files_only=True)
        except Exception as error:  # the hub's and the tokenizer library's errors share no base class
            raise RewardUnavailableError(
                f'reward "{self.name}": the tokenizer {self.tokenizer} cannot be loaded ({type(error).__name__}); download '
                f"the tokenizer files of {TOKENIZER} (licence: Apache-2.0) and give their folder as the option tokenizer=PATH"
            ) from error
        tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
        return tokenizer


def inferred_sizes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Sizes of the two towers and of the MLP, from the shapes of tensors under transformers' names.

    Returns: keyword arguments of BlipVisionConfig ("vision") and BlipTextConfig ("text"), and the MLP's widths ("mlp").
    Raises: KeyError naming a tensor that is missing; ValueError for a width that is not made of heads of 64.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise KeyError(f"{name} is missing")
        return tuple(tensors[name].shape)

    patch = shape("vision.embeddings.patch_embedding.weight")
    positions = shape("vision.embeddings.position_embedding")[1]
    words = shape("text.embeddings.word_embeddings.weight")
    heads = {tower: _heads(tower, width) for tower, width in (("vision", patch[0]), ("text", words[1]))}
    vision = {
        "hidden_size": patch[0],
        "intermediate_size": shape("vision.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(tensors, r"vision\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": heads["vision"],
        "patch_size": patch[-1],
        "image_size": round((positions - 1) ** 0.5) * patch[-1],
    }
    text = {
        "vocab_size": words[0],
        "hidden_size": words[1],
        "encoder_hidden_size": patch[0],
        "intermediate_size": shape("text.encoder.layer.0.intermediate.dense.weight")[0],
        "num_hidden_layers": _count(tensors, r"text\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": heads["text"],
        "max_position_embeddings": shape("text.embeddings.position_embeddings.weight")[0],
    }
    linear = [shape(f"mlp.{index}.weight") for index in (0, 2, 4, 6, 7)]
    return {"vision": vision, "text": text, "mlp": [linear[0][1], *(out for out, _ in linear)]}


def own_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published checkpoint's tensors under the names of this module's model; names it does not know are kept."""
    renamed = {}
    for name, tensor in tensors.items():
        if name == "blip.text_encoder.embeddings.position_ids":  # a constant 0, 1, 2, …
            continue
        if name.startswith("blip.visual_encoder."):
            name = _vision_name(name.removeprefix("blip.visual_encoder."))
        name = re.sub(r"^blip\.text_encoder\.", "text.", name)
        renamed[re.sub(r"^mlp\.layers\.", "mlp.", name)] = tensor
    return renamed


def _vision_name(name: str) -> str:
    for published, own in _VISION_NAMES:
        name = name.replace(published, own)
    name = re.sub(r"^norm\.", "post_layernorm.", name)
    return "vision." + re.sub(r"^blocks\.", "encoder.layers.", name)


def _published_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `own_names`, with the constant positions that the published file holds."""
    import torch

    renamed = {}
    for name, tensor in tensors.items():
        if name.startswith("vision."):
            name = re.sub(r"^vision\.encoder\.layers\.", "vision.blocks.", name).replace(
                "vision.post_layernorm.", "vision.norm."
            )
            for published, own in _VISION_NAMES:
                name = name.replace(own, published)
            name = name.replace("vision.", "blip.visual_encoder.", 1)
        renamed[re.sub(r"^mlp\.", "mlp.layers.", re.sub(r"^text\.", "blip.text_encoder.", name))] = tensor
    positions = renamed["blip.text_encoder.embeddings.position_embeddings.weight"].shape[0]
    return renamed | {"blip.text_encoder.embeddings.position_ids": torch.arange(positions)[None]}


def _heads(tower: str, width: int) -> int:
    if width % HEAD_WIDTH:
        raise ValueError(f"the {tower} tower is {width} wide, which is not a multiple of {HEAD_WIDTH}")
    return width // HEAD_WIDTH


def _count(tensors: Mapping[str, torch.Tensor], pattern: str) -> int:
    return len({match.group(1) for match in map(re.compile(pattern).match, tensors) if match})


def _tiny_sizes(vocabulary: int) -> dict[str, Any]:
    width = 2 * HEAD_WIDTH
    tower = {"hidden_size": width, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": vocabulary, "encoder_hidden_size": width, "max_position_embeddings": 64}
    return {"vision": tower | {"patch_size": 32, "image_size": 224}, "text": tower | text, "mlp": [width, 32, 16, 8, 4, 1]}


def _new_module(sizes: Mapping[str, Any]) -> nn.Module:
    """Both towers and the MLP (linear layers with dropout and no activation), as published."""
    from torch import nn
    from transformers import BlipTextConfig, BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    # is_decoder gives the layers their cross-attention; without it they have none.
    text = BlipTextConfig(**sizes["text"], is_decoder=True, layer_norm_eps=1e-12, bos_token_id=None, sep_token_id=None)
    vision = BlipVisionConfig(**sizes["vision"], layer_norm_eps=1e-6)
    a, b, c, d, e, f = sizes["mlp"]
    linear = (nn.Linear(a, b), nn.Dropout(0.2), nn.Linear(b, c), nn.Dropout(0.2), nn.Linear(c, d))
    mlp = nn.Sequential(*linear, nn.Dropout(0.1), nn.Linear(d, e), nn.Linear(e, f))
    towers = {"vision": BlipVisionModel(vision), "text": BlipTextModel(text, add_pooling_layer=False), "mlp": mlp}
    return nn.ModuleDict(towers)


def _forward(shared: SharedModel, images: Sequence[np.ndarray], texts: Sequence[str], device: torch.device) -> torch.Tensor:
    """The MLP's output float32 [N] for N images with their texts."""
    import torch

    vision, text, mlp = (shared.module[part] for part in ("vision", "text", "mlp"))
    pixels = clip_pixels(images, vision.config.image_size, round_half_even).to(device, next(vision.parameters()).dtype)
    seen = vision(pixel_values=pixels).last_hidden_state
    inputs = shared.extras["tokenizer"](
        list(texts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).to(device)
    read = text(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=device),
        is_decoder=False,  # attention in both directions, as published; True masks the future
    )
    return mlp(read.last_hidden_state[:, 0]).squeeze(-1).float()
