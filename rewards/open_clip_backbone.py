"""One open_clip model for all rewards that look through it: loaded once, and its latest features kept.

Rewards with the same architecture, weights, device and dtype share one model, and what one of them computed of an image the
others do not compute again, also when they ask at the same time.

Weights are never executed: a checkpoint is safetensors or a torch file of plain tensors. OpenAI's own `.pt` files are
TorchScript programs and refused; the same weights as safetensors are what the tag "openai" stands for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.models import (
    Placement,
    SharedModel,
    Source,
    check_batch_size,
    load_tensors,
    read_tensors,
    shared_model,
)
from xomni_rl.rewards.open_clip_files import (
    EMBEDDED,
    ClipFiles,
    find_clip,
    new_module,
    new_tokenizer,
    refuse_program,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

PREPROCESSING = ("model", "pad")
KEPT_FEATURES = 4096
"""Images, and texts, whose features a model remembers at most; 16 MB at 1024 dimensions."""
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""A model configuration for dry runs and tests."""
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # numbers beside the tensors in OpenAI's checkpoints


@dataclass(frozen=True)
class OpenClipBackbone:
    """How a reward wants its open_clip model; holds options only.

    Args:
        reward: name of the reward, for messages.
        model: "embedded", a folder, a `.json` or a name; see `find_clip`.
        weights: a file, a tag or a hub repository; see `find_clip`.
        source: where the published weights come from; None = there are none.
        placement: device, dtype and offloading.
        batch_size: images or texts per forward pass.
        preprocessing: "model" = as the model is configured; "pad" = the whole image, centred on black.
        option: the reward's option that `weights` was given as, for messages.
    Raises: ValueError for a batch size below 1, an unknown preprocessing, or weights beside the embedded model.
    """

    reward: str
    model: str
    weights: str | None = None
    source: Source | None = None
    placement: Placement = field(default_factory=Placement)
    batch_size: int = 32
    preprocessing: str = "model"
    option: str = "weights"

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        if self.preprocessing not in PREPROCESSING:
            raise ValueError(unknown_name("preprocessing", self.preprocessing, PREPROCESSING))
        if self.model == EMBEDDED and self.weights is not None:
            raise ValueError(f"the embedded model has its own weights; {self.option}={self.weights} needs another model")

    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 [N, D] of N ≥ 1 uint8 [H, W, 3] images of any sizes.

        Raises: RewardUnavailableError if the model cannot be had.
        """
        found, shared = self._open()
        transform = found.transform(pad=self.preprocessing == "pad")
        kind = self.preprocessing + json.dumps(found.preprocess, sort_keys=True)

        def encode(positions: Sequence[int]) -> Iterable[np.ndarray]:
            dtype = self.placement.torch_dtype()
            inputs = (transform(images[position]) for position in positions)
            return self._encoded(shared, inputs, lambda module, batch: module.encode_image(batch.to(dtype)))

        return np.stack(shared.extras["images"].get([(kind, image_digest(image)) for image in images], encode))

    def text_features(self, texts: Sequence[str]) -> tuple[np.ndarray, list[bool]]:
        """Unit vectors float32 [N, D] of N ≥ 1 texts, and whether each was cut at the model's context length.

        Raises: RewardUnavailableError if the model cannot be had.
        """
        _, shared = self._open()

        def encode(positions: Sequence[int]) -> Iterable[tuple[np.ndarray, bool]]:
            tokens, cut = _tokens(shared.extras["tokenizer"], [texts[position] for position in positions])
            return zip(self._encoded(shared, tokens, lambda module, batch: module.encode_text(batch)), cut, strict=True)

        pairs = shared.extras["texts"].get(list(texts), encode)
        return np.stack([features for features, _ in pairs]), [cut for _, cut in pairs]

    def load(self) -> int:
        """Loads the model. Returns: D, the length of its features. Raises: RewardUnavailableError."""
        found, _ = self._open()
        return int(found.model["embed_dim"])

    def files(self) -> tuple[Path, ...]:
        """Configuration, weights and tokenizer, as far as they are files. Raises: RewardUnavailableError."""
        return self._found().files

    def _found(self) -> ClipFiles:
        return find_clip(self.reward, self.model, self.weights, self.source, self.option)

    def _open(self) -> tuple[ClipFiles, SharedModel]:
        found = self._found()
        key = ("open_clip", json.dumps(found.model, sort_keys=True), found.tokenizer, str(found.weights))
        return found, shared_model(key, self.placement, lambda: self._loaded(found))

    def _loaded(self, found: ClipFiles) -> tuple[nn.Module, dict[str, Any]]:
        refuse_program(self.reward, found.weights, self.option)
        tensors = read_tensors(self.reward, found.weights, found.source, self.option)
        if all(name.startswith("module.") for name in tensors):  # saved from a DistributedDataParallel
            tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        try:
            module, tokenizer = new_module(found.model), new_tokenizer(found)
        except Exception as error:  # open_clip, transformers and the hub raise what they like at a bad configuration
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise RewardUnavailableError(f'reward "{self.reward}": open_clip cannot make {self.model} ({reason})') from error
        own = {name: tensor for name, tensor in tensors.items() if name not in _NOT_WEIGHTS}
        load_tensors(self.reward, module, own, found.weights, found.source, self.option)
        return module, {"tokenizer": tokenizer, "images": FeatureMemory(), "texts": FeatureMemory()}

    def _encoded(
        self, shared: SharedModel, inputs: Iterable[torch.Tensor], encode: Callable[[Any, torch.Tensor], torch.Tensor]
    ) -> np.ndarray:
        """Unit vectors float32 [N, D] of N inputs, in batches."""
        import torch

        features: list[torch.Tensor] = []
        waiting = iter(inputs)
        with shared.use() as device:
            while batch := list(islice(waiting, self.batch_size)):
                raw = encode(shared.module, torch.stack(batch).to(device)).float()
                features.append(torch.nn.functional.normalize(raw, dim=-1).cpu())
        found: np.ndarray = torch.cat(features).numpy()
        return found


class FeatureMemory:
    """What was computed of the inputs seen last. Who asks while it is being computed waits for it."""

    def __init__(self, limit: int = KEPT_FEATURES) -> None:
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._limit = limit
        self._lock = threading.RLock()
        with _memories_lock:
            _memories.add(self)

    def get(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Iterable[Any]]) -> list[Any]:
        """The values of N keys.

        Args:
            keys: N, equal where the inputs are.
            compute: positions among the keys, no two of them equal → a value for each.
        """
        with self._lock:
            known = {key: self._kept[key] for key in keys if key in self._kept}
            missing: dict[Hashable, int] = {}
            for position, key in enumerate(keys):
                if key not in known:
                    missing.setdefault(key, position)
            if missing:
                known |= dict(zip(missing, compute(list(missing.values())), strict=True))
            for key, value in known.items():
                self._kept[key] = value
                self._kept.move_to_end(key)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
            return [known[key] for key in keys]

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


_memories: WeakSet[FeatureMemory] = WeakSet()
_memories_lock = threading.Lock()


def forget_features() -> None:
    """Lets all models forget what they computed, so that the next score takes its full time; the models stay."""
    with _memories_lock:
        kept = list(_memories)
    for memory in kept:
        memory.clear()


def image_digest(image: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """Equal for equal images only, as far as 128 bits can tell."""
    return image.shape, hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def write_tiny_clip(folder: Path, **changes: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """Writes the configuration `tiny.json` (TINY with changes). Returns: its path, and random tensors of such a model."""
    import torch

    config = TINY | changes
    path = folder / "tiny.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return path, new_module(config).state_dict()


def _tokens(tokenizer: Callable[..., torch.Tensor], texts: list[str]) -> tuple[torch.Tensor, list[bool]]:
    """int64 [N, L], and whether a text is longer than L tokens: with room for one more, its L tokens differ then."""
    tokens = tokenizer(texts)
    length = tokens.shape[1]
    roomier = tokenizer(texts, context_length=length + 1)[:, :length]
    return tokens, (roomier != tokens).any(dim=1).tolist()
