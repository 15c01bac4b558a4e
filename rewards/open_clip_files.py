"""Where an open_clip model's parts come from: its configuration, its weights, its tokenizer, and what it makes of a picture."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xomni_rl.registry import nearest
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.models import Source, find_weights
from xomni_rl.weights import SIGNS_CLIP

if TYPE_CHECKING:
    import torch
    from torch import nn

EMBEDDED = "embedded"
CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
LONGEST_STRIP = 16
"""A picture longer than this many times its width loses its ends before it is enlarged for a crop of its middle."""
_HUB = "https://huggingface.co"
_ANY = Source(WEIGHT_FILES[0], f"{_HUB}/models?library=open_clip", "on each model's page", file=WEIGHT_FILES[0])


@dataclass(frozen=True)
class ClipFiles:
    """The parts of an open_clip model.

    Args:
        model: open_clip's model configuration (embed_dim, vision_cfg, text_cfg, …).
        preprocess: mean, std, interpolation, resize_mode, fill_color.
        tokenizer: folder or name of a transformers tokenizer; "" = OpenAI's byte pairs, which are in open_clip's wheel.
        weights: the checkpoint.
        source: where it comes from.
        files: all files that decide the features.
    """

    model: dict[str, Any]
    preprocess: dict[str, Any]
    tokenizer: str
    weights: Path
    source: Source
    files: tuple[Path, ...]

    def transform(self, pad: bool) -> Callable[[np.ndarray], torch.Tensor]:
        """What turns uint8 [H, W, 3] into the model's float32 [3, height, width]: as configured, or by `padded_input`."""
        size = self.model["vision_cfg"].get("image_size", 224)
        mean, std = tuple(self.preprocess["mean"]), tuple(self.preprocess["std"])
        if pad:
            return lambda image: padded_input(image, size, mean, std)
        import open_clip
        from PIL import Image

        how = {key: self.preprocess[key] for key in ("resize_mode", "interpolation", "fill_color")}
        transform = open_clip.image_transform(size, is_train=False, mean=mean, std=std, **how)
        shorten = _middle if how["resize_mode"] == "shortest" else np.asarray
        return lambda image: transform(Image.fromarray(shorten(image)))


def padded_input(image: np.ndarray, size: int | list[int], mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """The whole image, its longest side fitted, centred on black: float32 [3, size, size], normalised.

    The order matters to 0.01 of a score: to [0, 1] first, then antialiased bicubic without rounding or clipping, then zeros
    around it, and the normalisation last, so that the border is black and not grey.

    Args:
        image: uint8 [H, W, 3].
        size: side in px, or [side, side].
        mean, std: per channel, of values in [0, 1].
    Source: HPSv2's own preprocessing. Departs from it: an image whose longest side has the right size already is padded
        too, and no side becomes shorter than 1 px; there it fails.
    """
    import torch

    side = size if isinstance(size, int) else max(size)
    height, width = image.shape[:2]
    scale = side / max(height, width)
    fitted = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)[None]
    if fitted != (height, width):
        pixels = torch.nn.functional.interpolate(pixels, fitted, mode="bicubic", align_corners=False, antialias=True)
    above, left = (side - fitted[0]) // 2, (side - fitted[1]) // 2
    border = (left, side - fitted[1] - left, above, side - fitted[0] - above)
    padded = torch.nn.functional.pad(pixels[0], border)
    return (padded - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _middle(image: np.ndarray) -> np.ndarray:
    """The image without the ends of a very long one: a strip of 1×100,000 px would be enlarged to 20 GB."""
    height, width = image.shape[:2]
    longest = LONGEST_STRIP * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return np.ascontiguousarray(image[top : height - top, left : width - left])


def find_clip(reward: str, model: str, weights: str | None, source: Source | None, option: str) -> ClipFiles:
    """The parts of a model, all of them on this machine afterwards.

    Args:
        reward: name of the reward, for messages.
        model: "embedded"; a folder in open_clip's layout (`open_clip_config.json`, weights, tokenizer files); a model
            configuration (`.json`); or a name that open_clip knows ("ViT-H-14").
        weights: a file; a tag that open_clip knows for the model ("openai"); a hub repository "owner/name"; None = the
            folder's own, or those of `source`.
        source: the published weights; None = there are none.
        option: the reward's option that `weights` was given as.
    Raises: RewardUnavailableError with the remedy.
    """
    folder = SIGNS_CLIP if model == EMBEDDED else Path(model)
    if model == EMBEDDED or folder.is_dir():
        return _in_folder(reward, folder.absolute(), weights, option)
    tagged = None
    if folder.suffix == ".json":
        config, preprocess = _read_config(reward, folder.absolute())
    else:
        config, preprocess = _known_model(reward, model), _preprocess()
        tagged = _tag(reward, model, config, weights, option)
    if tagged is not None:
        preprocess, source, weights = _preprocess(tagged), _tag_source(tagged), None
    elif weights is None and source is None:
        raise RewardUnavailableError(
            f'reward "{reward}": the model {model} needs weights; give the path of a checkpoint or a tag of open_clip '
            f"as the option {option}"
        )
    path = find_file(reward, weights, source or _ANY, option)
    files = (folder.absolute(), path) if folder.suffix == ".json" else (path,)
    return ClipFiles(config, preprocess, config["text_cfg"].get("hf_tokenizer_name") or "", path, source or _ANY, files)


def new_module(config: dict[str, Any]) -> nn.Module:
    """A randomly initialised open_clip model; nothing is downloaded for its towers."""
    import open_clip

    options = deepcopy(config)  # the constructors change what they are given
    is_custom = options.pop("custom_text", False) or "hf_model_name" in options["text_cfg"]
    for tower, key in (("vision_cfg", "timm_model_name"), ("text_cfg", "hf_model_name")):
        if key in options[tower]:
            options[tower][key.replace("name", "pretrained")] = False
    if "multimodal_cfg" in options:
        return open_clip.CoCa(**options)
    return open_clip.CustomTextCLIP(**options) if is_custom else open_clip.CLIP(**options)


def new_tokenizer(found: ClipFiles) -> Callable[..., torch.Tensor]:
    """open_clip's tokenizer of the model: (texts, context_length=…) → int64 [N, context_length]."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text = found.model["text_cfg"]
    options = {"context_length": text.get("context_length", 77)} | dict(text.get("tokenizer_kwargs") or {})
    if not found.tokenizer:
        return SimpleTokenizer(**options)
    return HFTokenizer(found.tokenizer, tokenizer_mode=text.get("tokenizer_mode"), **options)


def refuse_program(reward: str, path: Path, option: str) -> None:
    """Raises RewardUnavailableError for a TorchScript archive: it would have to be executed to be read."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise RewardUnavailableError(
                    f'reward "{reward}": {path} is a TorchScript program, which is not executed here; give the same weights as '
                    f"plain tensors, for OpenAI's models {WEIGHT_FILES[0]} of {_HUB}/timm, as the option {option}"
                )


def _in_folder(reward: str, folder: Path, weights: str | None, option: str) -> ClipFiles:
    config, preprocess = _read_config(reward, folder / CONFIG_FILE)
    own = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), folder / WEIGHT_FILES[0])
    path = find_file(reward, weights or str(own), _ANY, option)
    has_tokenizer = bool(config["text_cfg"].get("hf_tokenizer_name"))
    files = (folder / CONFIG_FILE, path, *(sorted(folder.glob("*token*.json")) if has_tokenizer else ()))
    return ClipFiles(config, preprocess, str(folder) if has_tokenizer else "", path, _ANY, files)


def _read_config(reward: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and preprocessing configuration of an open_clip JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        config = dict(found.get("model_cfg", found))
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
        reason = f"has no {missing[0]}" if missing else ""
    except (OSError, ValueError, AttributeError, TypeError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
    if reason:
        raise RewardUnavailableError(
            f'reward "{reward}": {path} {reason}; it must be a model configuration of open_clip (in a folder: {CONFIG_FILE})'
        )
    return config, _preprocess(found.get("preprocess_cfg"))


def _preprocess(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Preprocessing as open_clip configures it where nothing else is said, with changes."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    default = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "interpolation": "bicubic"}
    default |= {"resize_mode": "shortest", "fill_color": 0}
    return default | {key: value for key, value in (changes or {}).items() if key in default and value is not None}


def _known_model(reward: str, name: str) -> dict[str, Any]:
    import open_clip

    found = open_clip.get_model_config(name)
    if found is None:
        close = ", ".join(nearest(name, open_clip.list_models())) or "see open_clip.list_models()"
        raise RewardUnavailableError(
            f'reward "{reward}": "{name}" is no model of open_clip (nearest: {close}) and no folder or .json file here'
        )
    return dict(found)


def _tag(reward: str, name: str, config: dict[str, Any], weights: str | None, option: str) -> dict[str, Any] | None:
    """open_clip's entry for weights that are given as one of its tags; None if they are given otherwise."""
    import open_clip

    if weights is None or Path(weights).exists() or "/" in weights or Path(weights).suffix:
        return None
    found: dict[str, Any] = open_clip.get_pretrained_cfg(name, weights)
    if not found.get("hf_hub"):
        tags = open_clip.list_pretrained_tags_by_model(name)
        close = ", ".join(nearest(weights, tags) or tags) or "it has none"
        raise RewardUnavailableError(
            f'reward "{reward}": {option}={weights} is no file here and no tag of open_clip for {name} (nearest: {close})'
        )
    if bool(found.get("quick_gelu")) != bool(config.get("quick_gelu")):
        raise RewardUnavailableError(
            f'reward "{reward}": the weights "{weights}" were trained with another activation; use the model {name}-quickgelu'
        )
    return found


def _tag_source(tagged: dict[str, Any]) -> Source:
    repo, _, file = tagged["hf_hub"].rpartition("/")
    file = file or WEIGHT_FILES[0]
    licence = "MIT" if repo.startswith("laion/") or repo.endswith(".openai") else "on that page"
    return Source(file, f"{_HUB}/{repo}", licence, repo=repo, file=file)


def find_file(reward: str, weights: str | None, source: Source, option: str = "weights") -> Path:
    """A reward's checkpoint, as `find_weights` finds it. Raises: RewardUnavailableError, also for a folder."""
    if weights is not None and Path(weights).is_dir():
        raise RewardUnavailableError(f'reward "{reward}": {weights} is a folder and not a checkpoint; {source.remedy(option)}')
    return find_weights(reward, weights, source, option).absolute()
