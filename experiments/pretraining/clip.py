"""Trains the embedded open_clip model: signs against captions, texts and colours, with near misses in every batch.

A batch holds families of three signs: one, its twin in another colour, and its twin with one other letter, so that neither
the colour nor three of the four letters are enough to tell them apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from xomni_rl.prompt_sets.signs import ALPHABET, COLOURS, TEMPLATES, is_heldout, random_strings, render_sign

from .data import SignBatch

EMBEDDING = 128
CONTEXT = 32
"""Longest caption in tokens; a sign's prompt has about 14."""
VOCABULARY = 384
MODEL: dict[str, Any] = {
    "embed_dim": EMBEDDING,
    "vision_cfg": {"image_size": [32, 96], "patch_size": 8, "layers": 4, "width": 128, "head_width": 32},
    "text_cfg": {
        "hf_tokenizer_name": ".",  # open_clip reads the tokenizer from the model's own folder
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": 128,
        "heads": 4,
        "layers": 3,
        "pool_type": "eos",
        "eos_id": 1,
    },
}
PREPROCESS: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
PAD, EOS = "<pad>", "<eos>"
COLOUR_CAPTION = "a {colour} sign"
TEXT_CAPTION = '"{text}"'
TEXT_SHARE, COLOUR_SHARE = 0.5, 0.2
"""Weights of the text and the colour loss beside the caption loss."""


def train_clip_tokenizer(captions: list[str]) -> Any:
    """A byte-level BPE that never merges capitals and digits, so that a sign's letters stay apart.

    Returns: a transformers tokenizer that ends every text with EOS.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    letters = pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([letters, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[PAD, EOS], initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, model_max_length=CONTEXT)


def write_clip_folder(folder: Path, model: nn.Module, tokenizer: Any) -> None:
    """Writes a folder that open_clip loads as `local-dir:FOLDER`: configuration, weights, tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


def new_clip(seed: int) -> nn.Module:
    """A freshly initialised open_clip model of the embedded size."""
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    config = json.loads(json.dumps(MODEL))  # the constructor changes what it is given
    return CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])


def families(rng: np.random.Generator, count: int) -> SignBatch:
    """`count` training signs, each followed by a twin in another colour and a twin with one other letter: 3 · count signs."""
    names = list(COLOURS)
    texts, colours = [], []
    for text in random_strings(rng, count, heldout=False):
        colour, other = rng.choice(len(names), size=2, replace=False)
        texts += [text, text, _one_other_letter(text, rng)]
        colours += [names[colour], names[other], names[colour]]
    templates = [TEMPLATES[i] for i in rng.integers(len(TEMPLATES), size=len(texts))]
    images = [render_sign(t, c, rng, proportional=bool(rng.random() < 0.25)) for t, c in zip(texts, colours, strict=True)]
    return SignBatch(np.stack([spoilt(image, rng) for image in images]), texts, colours, templates)


def _one_other_letter(text: str, rng: np.random.Generator) -> str:
    while True:
        place = int(rng.integers(len(text)))
        letter = ALPHABET[int(rng.integers(len(ALPHABET)))]
        other = text[:place] + letter + text[place + 1 :]
        if other != text and not is_heldout(other):
            return other


def spoilt(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half of the images blurred (σ up to 1 px) and noisy (σ up to 16 of 255): generated pictures are never clean."""
    if rng.random() < 0.5:
        return image
    blurred = gaussian_filter(image.astype(np.float64), sigma=(rng.uniform(0, 1),) * 2 + (0,))
    return np.clip(blurred + rng.normal(0, rng.uniform(0, 16), image.shape), 0, 255).astype(np.uint8)


class ClipTrainer(nn.Module):
    """The model with its tokenizer; the loss is symmetric InfoNCE over captions and over texts, plus the colour's."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    def forward(self, batch: SignBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss and its parts, nats, of N signs."""
        names = list(COLOURS)
        texts = list(dict.fromkeys(batch.texts))
        images = nn.functional.normalize(self.model.encode_image(to_input(batch.images)), dim=-1)
        written = self.encode([*batch.prompts(), *(TEXT_CAPTION.format(text=t) for t in texts), *map(self._colour, names)])
        captions, shorts, colours = written.split([len(images), len(texts), len(names)])
        scale = self.model.logit_scale.exp().clamp(max=100)
        diagonal = torch.arange(len(images))
        logits = scale * images @ captions.T
        caption = (_nll(logits, diagonal) + _nll(logits.T, diagonal)) / 2
        text = _nll(scale * images @ shorts.T, torch.tensor([texts.index(t) for t in batch.texts]))
        colour = _nll(scale * images @ colours.T, torch.tensor([names.index(c) for c in batch.colours]))
        parts = {"caption": caption, "text": text, "colour": colour}
        return caption + TEXT_SHARE * text + COLOUR_SHARE * colour, {k: float(v.detach()) for k, v in parts.items()}

    def encode(self, captions: list[str]) -> Tensor:
        """Normalised text features [N, EMBEDDING]."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt").input_ids
        return nn.functional.normalize(self.model.encode_text(ids), dim=-1)

    @staticmethod
    def _colour(name: str) -> str:
        return COLOUR_CAPTION.format(colour=name)


def to_input(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] as the float32 [N, 3, H, W] in [-1, 1] that PREPROCESS gives."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _nll(logits: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, target)
