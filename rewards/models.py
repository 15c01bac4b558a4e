"""What model-based rewards share: where weights are found, one copy of each model in a process, device, dtype, offloading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xomni_rl.registry import unknown_name
from xomni_rl.rewards.base import RewardError, RewardResult, RewardUnavailableError

if TYPE_CHECKING:
    import torch
    from torch import nn

DTYPES = ("float32", "bfloat16", "float16")
NOT_FETCHED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf")
"""Of a model folder on the hub: the same weights in forms that are not read here, gigabytes each."""
TOKENIZER_FILES = ("*token*", "vocab*", "merges*", "config.json")


@dataclass(frozen=True)
class Source:
    """Where published weights come from, in the words of the sentence that a person reads when they are missing.

    Args:
        what: what to download ("HPS_v2.1_compressed.pt").
        where: page or address to download it from.
        licence: of the weights.
        repo: model hub repository that it can be loaded from by name; None = a file to be given by path.
        file: file in that repository; None = the whole repository is a model folder.
    """

    what: str
    where: str
    licence: str
    repo: str | None = None
    file: str | None = None

    def remedy(self, option: str) -> str:
        """The end of a sentence about missing or wrong weights: what to download, where it goes, its licence."""
        return f"download {self.what} from {self.where} (licence: {self.licence}) and give its path as the option {option}=PATH"


def find_weights(reward: str, weights: str | Path | None, source: Source, option: str = "weights") -> Path:
    """The file or folder of a reward's weights: a local path, the cache of the model hub, or downloaded from there.

    Args:
        reward: name of the reward, for the message.
        weights: a path; a hub repository "owner/name"; None = the published ones.
        source: where the published ones come from.
        option: the reward's option that `weights` was given as, for the message.
    Raises: RewardUnavailableError naming what to download, where it goes, and its licence.
    """
    if weights is not None and Path(weights).exists():
        return Path(weights)
    is_repo = weights is not None and str(weights).count("/") == 1 and not str(weights).startswith((".", "~", "/"))
    repo = str(weights) if is_repo else (source.repo if weights is None else None)
    reason = f"{weights} does not exist" if weights is not None else "its weights are not on this machine"
    if repo is not None:
        try:
            return _from_hub(repo, source.file)
        except Exception as error:  # the hub's errors share no base class with those of its HTTP client
            reason = (
                f"{repo} is neither a file here nor in the model hub's cache, and cannot be fetched ({type(error).__name__})"
            )
    raise RewardUnavailableError(f'reward "{reward}": {reason}; {source.remedy(option)}')


def tokenizer_folder(place: str) -> Path:
    """The folder of a tokenizer: `place` itself, or the tokenizer's files of the hub repository of that name.

    Raises: the hub's errors, which share no base class.
    """
    return Path(place) if Path(place).exists() else _snapshot(place, TOKENIZER_FILES)


def _from_hub(repo: str, file: str | None) -> Path:
    from huggingface_hub import try_to_load_from_cache

    if file is None:
        return _snapshot(repo)
    cached = try_to_load_from_cache(repo, file)
    path = Path(cached) if isinstance(cached, str) else _snapshot(repo, (file,)) / file
    if not path.is_file():
        raise FileNotFoundError(f"{repo} holds no {file}")
    return path


def _snapshot(repo: str, only: tuple[str, ...] = ()) -> Path:
    from huggingface_hub import constants

    return _asked_once(repo, only, str(constants.HF_HUB_CACHE))


@lru_cache(maxsize=64)
def _asked_once(repo: str, only: tuple[str, ...], _cache: str) -> Path:
    """A repository's folder in the hub's cache. The hub is asked once: no score may wait for the network.

    Not by hf_hub_download: it tries a hub that cannot be reached for 23 s, and says so in ten lines.
    """
    from huggingface_hub import snapshot_download

    if only:
        return Path(snapshot_download(repo, allow_patterns=list(only)))
    return Path(snapshot_download(repo, ignore_patterns=list(NOT_FETCHED)))


def read_tensors(reward: str, path: Path, source: Source, option: str = "weights") -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, on the CPU: safetensors, or a torch file of plain tensors (nothing else is unpickled).

    A dictionary under the key `state_dict` or `model` is unwrapped.

    Raises: RewardUnavailableError if the file is damaged or holds anything but tensors.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
                found = found[key]
        if isinstance(found, Mapping) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
            return {str(key): value for key, value in found.items()}
        reason = "it holds no tensors by name"
    except Exception as error:  # unpickling, zip, header and I/O errors share no base class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if type(error).__name__ == "UnpicklingError":  # torch's own words advise to execute it
            reason = "it is damaged, or holds more than tensors, which would have to be executed"
    raise RewardUnavailableError(f'reward "{reward}": {path} cannot be read ({reason}); {source.remedy(option)}')


def load_tensors(
    reward: str, module: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path, source: Source, option: str = "weights"
) -> None:
    """Loads tensors into a module, all of them and no others.

    Raises: RewardUnavailableError naming the first that is missing, left over or of another shape.
    """
    wanted = module.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in wanted]
    wrong += [
        f"{name} is {list(tensors[name].shape)} instead of {list(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise RewardUnavailableError(
            f'reward "{reward}": {path} is not {source.what} ({wrong[0]}{more}); {source.remedy(option)}'
        )
    module.load_state_dict(dict(tensors))


@dataclass(frozen=True)
class Placement:
    """Where a model runs.

    Args:
        device: auto = the GPU if there is one; else cpu, cuda, cuda:1, …
        dtype: of the weights: float32, bfloat16 or float16.
        offload: move the model back to the CPU's memory after every call.
    Raises: ValueError for an unknown dtype.
    """

    device: str = "auto"
    dtype: str = "float32"
    offload: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(unknown_name("dtype", str(self.dtype), DTYPES))

    def torch_device(self) -> torch.device:
        """Raises: RewardUnavailableError if there is no such device."""
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise RewardUnavailableError(f"device {self.device!r} cannot be used: {str(error).splitlines()[0]}") from error
        return device

    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def check_batch_size(batch_size: Any) -> None:
    """Raises ValueError unless it is a whole number of at least 1."""
    if type(batch_size) is not int or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")


def finite_result(reward: str, scores: np.ndarray, details: list[dict[str, Any]]) -> RewardResult:
    """The result of a model that applies to every sample. Raises: RewardError for the samples where it gave NaN or inf."""
    good = np.isfinite(scores)
    result = RewardResult(np.where(good, scores, np.nan).astype(np.float32), details)
    if not good.all():
        reason = "the model gave a score that is not a number; its weights or its dtype may be the cause"
        raise RewardError(reward, {int(index): reason for index in np.flatnonzero(~good)}, result)
    return result


@dataclass
class SharedModel:
    """One loaded model of this process. Its users take turns: `use` holds a lock.

    Args:
        module: the model, in eval mode.
        placement: where it runs.
        extras: what else its loader found (a tokenizer, a processor).
    """

    module: Any  # an nn.Module; Any because mypy takes a module's attributes for tensors
    placement: Placement
    extras: dict[str, Any] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def use(self) -> Iterator[torch.device]:
        """The model on its device, without gradients, for one user at a time; afterwards offloaded if so asked."""
        import torch

        with self.lock, torch.inference_mode():
            device = self.placement.torch_device()
            self.module.to(device)
            try:
                yield device
            finally:
                if self.placement.offload and device.type != "cpu":
                    self.module.to("cpu")


_models: dict[Hashable, SharedModel] = {}
_lock = threading.RLock()


def shared_model(key: Hashable, placement: Placement, load: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> SharedModel:
    """The process's one copy of a model, loaded at the first call; rewards with the same key share it.

    Args:
        key: architecture and weights, such as ("open_clip", "ViT-H-14", "/weights/hps.pt").
        placement: device and dtype, part of the key.
        load: makes the model on the CPU, and what goes with it.
    """
    with _lock:
        found = _models.get((key, placement))
        if found is None:
            module, extras = load()
            module = module.to(placement.torch_dtype()).eval().requires_grad_(False)
            found = _models[(key, placement)] = SharedModel(module, placement, extras)
        return found


def loaded_models() -> dict[Hashable, SharedModel]:
    """The shared models in memory, by key."""
    with _lock:
        return dict(_models)


def forget_models() -> None:
    """Lets go of all shared models, to free their memory; the next score loads them again."""
    with _lock:
        _models.clear()
