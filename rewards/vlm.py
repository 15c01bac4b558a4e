"""A vision-language model that judges images: what the local and the served one have in common.

`build_vlm` makes either from the option `vlm` of a reward. Both keep options only: they can be pickled and copied, and the
model or the connections are made at first use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xomni_rl.registry import unknown_name
from xomni_rl.rewards.models import Source

QWEN = Source(
    what="the model folder Qwen2.5-VL-7B-Instruct",
    where="https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct",
    licence="Apache-2.0",
    repo="Qwen/Qwen2.5-VL-7B-Instruct",
)
"""The judge of the X-Omni paper."""

BACKENDS = ("local", "server")
JUDGE_PROMPTS = Path(__file__).parent / "judge_prompts"
"""Folder of what the judges are asked; each file is hashed into the records of a run."""


class VlmError(RuntimeError):
    """Some questions have no answer.

    Args:
        failures: index of the question → reason.
        partial: what the others gave, in the form the call returns: NaN or "" stands where it failed.
    """

    def __init__(self, failures: Mapping[int, str], partial: np.ndarray | list[str] | None = None) -> None:
        super().__init__(failures, partial)
        self.failures = dict(failures)
        self.partial = partial

    def __str__(self) -> str:
        index, reason = next(iter(self.failures.items()))
        return f"{len(self.failures)} question(s) have no answer; question {index}: {reason}"


class Vlm(Protocol):
    """A judge: N uint8 [H, W, 3] images of any sizes and N questions, one per image; an image may come several times."""

    def yes_probability(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> np.ndarray:
        """P(yes) = p(yes) / (p(yes) + p(no)) as the first token of the answer, each summed over its usual spellings.

        Returns: float64 [N] in [0, 1].
        Raises: VlmError for single questions; RewardUnavailableError if the judge cannot work at all.
        """

    def generate(self, images: Sequence[np.ndarray], questions: Sequence[str], max_new_tokens: int = 256) -> list[str]:
        """N greedy answers, without special tokens, stripped. Raises: as `yes_probability`."""

    def load(self) -> None:
        """Loads the model, or sees whether the server is there. Raises: RewardUnavailableError with the remedy."""

    def files(self) -> tuple[Path, ...]:
        """Files that decide the answers; none for a server. Raises: RewardUnavailableError."""


def build_vlm(reward: str, vlm: Mapping[str, Any], source: Source = QWEN, option: str = "weights") -> Vlm:
    """The judge that a reward's options describe.

    Args:
        reward: name of the reward, for messages.
        vlm: {backend: local, weights, device, dtype, …} or {backend: server, url, model, api_key_env, …}; the other keys
            are the fields of `LocalVlm` and `ServerVlm`.
        source: the local judge's published weights, used if `weights` is not given.
        option: the reward's option that `weights` was given as, for messages.
    Raises: ValueError for an unknown back-end or option, or a value that it refuses.
    """
    options = {str(key): value for key, value in vlm.items()}
    backend = options.pop("backend", "local")
    if backend not in BACKENDS:
        raise ValueError(f'reward "{reward}": {unknown_name("vlm backend", str(backend), BACKENDS)}')
    if backend == "local":
        from xomni_rl.rewards.vlm_local import LocalVlm

        _check_options(reward, options, LocalVlm.__dataclass_fields__)
        return LocalVlm(**options, reward=reward, source=source, option=option)
    from xomni_rl.rewards.vlm_server import ServerVlm

    _check_options(reward, options, ServerVlm.__dataclass_fields__)
    return ServerVlm(**options, reward=reward)


def judge_options(reward: str, vlm: Mapping[str, Any] | None, **local: Any) -> dict[str, Any]:
    """The option `vlm` of a reward, joined for a local judge with the options that every model-based reward has.

    Args:
        reward: name of the reward, for messages.
        vlm: as `build_vlm` takes it; None = {backend: local}. Its keys win.
        local: the reward's own weights, device, dtype, offload and batch_size.
    Raises: ValueError for weights beside a served judge, or a `vlm` that is no mapping.
    """
    if vlm is not None and not isinstance(vlm, Mapping):
        raise ValueError(f'reward "{reward}": vlm must be like {{"backend": "local"}}, got {vlm!r}')
    given = {"backend": "local", **(vlm or {})}
    if given["backend"] == "local":
        return {**local, **given}
    if local.get("weights") is not None:
        raise ValueError(f'reward "{reward}": weights is for a local judge; a served one has its own')
    return given


def check_questions(images: Sequence[np.ndarray], questions: Sequence[str]) -> None:
    """Raises ValueError unless there is one image per question."""
    if len(images) != len(questions):
        raise ValueError(f"one image per question is needed, got {len(images)} images and {len(questions)} questions")


def _check_options(reward: str, options: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    known = [name for name in fields if name not in ("reward", "source", "option")]
    for option in options:
        if option not in known:
            raise ValueError(f'reward "{reward}": {unknown_name("vlm option", option, known)}')
