"""Which image would people pick for this prompt? PickScore, a CLIP ViT-H/14 fine-tuned on Pick-a-Pic.

Scores      exp(logit scale) · cosine of image and text features, raw as published: 15 to 26 for generated images, within ±100
            by construction; higher is better.
Units       raw, since the paper's figures and the thresholds people quote (20 to 23) are raw. Flow-GRPO divides by 26, others
            by 100 (which leaves about the cosine): a factor, which advantages normalised by their deviation do not notice.
Not applicable  never: every prompt has a text. Texts beyond 77 tokens are cut, and the detail says so.
Cost        one ViT-H/14 forward at 224 px per image, one text forward per different prompt.
Weights     yuvalkirstain/PickScore_v1, MIT; safetensors only, nothing is unpickled. `weights` is a folder in transformers'
            layout (config.json, model.safetensors, and the tokenizer's files) or a name on the model hub.
Ways to hack it  saturated, high-contrast, centred pictures; words of the prompt drawn into the image; details below 224 px and
            everything outside the centre square are invisible to it. Watch `colorfulness`, `contrast` and an OCR reward.
Source      arXiv:2305.01569. The centre crop and Pillow's bicubic are those of the published processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    shared_model,
    tokenizer_folder,
)
from xomni_rl.rewards.pixels import clip_pixels, disc_and_noise, round_down
from xomni_rl.rewards.pretrained import load_pretrained, model_files

if TYPE_CHECKING:
    import torch
    from torch import nn

SOURCE = Source(
    what="PickScore_v1 (config.json, model.safetensors and the tokenizer's files)",
    where="https://huggingface.co/yuvalkirstain/PickScore_v1",
    licence="MIT",
    repo="yuvalkirstain/PickScore_v1",
)
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
MAX_TOKENS = 77
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


@rewards.register("pickscore")
class PickScoreReward(Reward):
    """Human preference by PickScore v1: scaled cosine of image and prompt, raw.

    Args:
        weights: folder in transformers' layout, or a name on the model hub; None = yuvalkirstain/PickScore_v1.
        processor: folder or hub name of the tokenizer, used if the weights' folder holds none.
        device, dtype, offload: see `Placement`.
        batch_size: images per forward pass.
    Raises: ValueError for an unknown dtype or a batch size below 1.
    """

    name = "pickscore"
    version = "1"
    range = (-100.0, 100.0)
    needs = ("text",)
    cost = "one ViT-H/14 forward at 224 px per image, one text forward per different prompt"

    def __init__(
        self,
        weights: str | None = None,
        processor: str = PROCESSOR,
        device: str = "auto",
        dtype: str = "float32",
        offload: bool = False,
        batch_size: int = 32,
    ) -> None:
        check_batch_size(batch_size)
        self.weights, self.processor, self.batch_size = weights, processor, batch_size
        self.placement = Placement(device, dtype, offload)

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        """Scores of N images; details: `cosine`, and `cut`: whether the prompt is longer than the model reads.

        Raises: RewardError for samples whose score is not finite.
        """
        if not images:
            return RewardResult(np.zeros(0, np.float32), [])
        shared = self._model()
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))
        rows = [texts.index(prompt.text) for prompt in prompts]
        with shared.use() as device:
            text_features = self._in_batches(texts, lambda batch: _text_features(shared, batch, device))
            image_features = self._in_batches(images, lambda batch: _image_features(shared, batch, device))
            cosines = (image_features * text_features[rows]).sum(-1)
            scores = shared.module.logit_scale.float().exp() * cosines
        cut = [_is_cut(shared.extras["tokenizer"], text) for text in texts]
        details = [{"cosine": round(float(cosine), 6), "cut": cut[row]} for cosine, row in zip(cosines, rows, strict=True)]
        return finite_result(self.name, scores.cpu().numpy(), details)

    def load(self) -> None:
        """Loads model and tokenizer. Raises: RewardUnavailableError."""
        self._model()

    def files(self) -> tuple[Path, ...]:
        """Weights, configuration and tokenizer files of the folder. Raises: RewardUnavailableError."""
        return model_files(self._folder())

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        """A red disc on white, and noise, for a prompt that asks for the disc."""
        return (*disc_and_noise(), Prompt(id="self-check", text="a red circle on a white background"))

    @classmethod
    def write_tiny(cls, folder: Path) -> dict[str, Any]:
        """Writes a CLIP of two layers per tower with random weights, and a tokenizer of bytes without merges."""
        import torch
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        letters = list(bytes_to_unicode().values())
        words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        vocabulary = {word: index for index, word in enumerate(words)}
        CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
        config = CLIPConfig(
            text_config=sizes | ends | {"vocab_size": len(words)},
            vision_config=sizes | {"patch_size": 32, "image_size": 224},
            projection_dim=32,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            CLIPModel(config).save_pretrained(folder)
        return {"weights": str(folder)}

    def _in_batches(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.cat([encode(items[start : start + self.batch_size]) for start in range(0, len(items), self.batch_size)])

    def _folder(self) -> Path:
        path = find_weights(self.name, self.weights, SOURCE)
        if not (path / "config.json").is_file():
            raise RewardUnavailableError(
                f'reward "{self.name}": {path} is not a model folder with a config.json; {SOURCE.remedy("weights")}'
            )
        return path

    def _model(self) -> SharedModel:
        folder = self._folder()
        return shared_model(("transformers-clip", str(folder), self.processor), self.placement, lambda: self._loaded(folder))

    def _loaded(self, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
        from transformers import CLIPModel

        module = load_pretrained(self.name, CLIPModel, folder, SOURCE)
        return module, {"tokenizer": self._tokenizer(folder)}

    def _tokenizer(self, folder: Path) -> Any:
        from transformers import CLIPTokenizer

        has_own = any((folder / name).is_file() for name in _TOKENIZER_FILES)
        place = str(folder) if has_own else self.processor
        try:
            return CLIPTokenizer.from_pretrained(tokenizer_folder(place), local_files_only=True)
        except Exception as error:  # the hub's and the tokenizer library's errors share no base class
            raise RewardUnavailableError(
                f'reward "{self.name}": the tokenizer {place} cannot be loaded ({type(error).__name__}); put tokenizer.json '
                f"of {PROCESSOR} (licence: MIT) into {folder} or give its folder as the option processor=PATH"
            ) from error


def _text_features(shared: SharedModel, texts: Sequence[str], device: torch.device) -> torch.Tensor:
    """Unit vectors float32 [N, D] of N texts, cut at the model's length."""
    inputs = shared.extras["tokenizer"](
        list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).to(device)
    features = shared.module.get_text_features(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
    return _unit(features.pooler_output)


def _image_features(shared: SharedModel, images: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """Unit vectors float32 [N, D] of N images."""
    module = shared.module
    pixels = clip_pixels(images, module.config.vision_config.image_size, round_down)
    return _unit(module.get_image_features(pixel_values=pixels.to(device, module.dtype)).pooler_output)


def _unit(features: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import normalize

    return normalize(features.float(), dim=-1)


def _is_cut(tokenizer: Any, text: str) -> bool:
    return len(tokenizer(text, verbose=False).input_ids) > MAX_TOKENS
