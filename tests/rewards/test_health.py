"""The check of a reward finds known faults, and only those; nothing that is random notices it."""

import hashlib
import importlib.metadata
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import (
    FunctionReward,
    Reward,
    RewardError,
    RewardResult,
    RewardUnavailableError,
    build_reward,
    reward,
    rewards,
)
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.rewards.health import check_before_training, examine, hashes_of, packages_of, quick_check, random_state_kept
from xomni_rl.rewards.models import Placement, forget_models, loaded_models, shared_model

Images = Sequence[np.ndarray]
WHITE, BLACK = np.full((8, 10, 3), 255, np.uint8), np.zeros((8, 10, 3), np.uint8)

NOISE = np.random.default_rng(0).integers(0, 256, (8, 10, 3)).mean() / 255
"""Brightness of the noise that is among the examined images."""


def brightness(images: Images) -> np.ndarray:
    return np.array([image.mean() / 255 for image in images])


class Measured(Reward):
    """A measure of the images with white as the good and black as the worthless one; subclasses have faults."""

    name, version, range, cost = "measured", "3", (0.0, 1.0), "nothing"
    measure: ClassVar[Callable[[Images], np.ndarray]] = staticmethod(brightness)

    def score(self, images: list[np.ndarray], prompts: Sequence[Prompt]) -> RewardResult:
        return RewardResult(type(self).measure(images), [{} for _ in images])

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        return WHITE, BLACK, Prompt("p", "anything")


def measured(measure: Callable[[Images], Any], **attributes: Any) -> Reward:
    """A reward with that measure and those class attributes."""
    return type("Faulty", (Measured,), {"measure": staticmethod(measure), **attributes})()


def unavailable(self: Reward) -> None:
    raise RewardUnavailableError('reward "big": download big.pt')


def unloadable(self: Reward) -> None:
    raise KeyError("layers.0")


def no_pair(self: Reward) -> Any:
    raise OSError("no font")


def fails_on_second(images: Images) -> np.ndarray:
    raise RewardError("measured", {1: "smudged"})


def whitening(images: Images) -> np.ndarray:
    images[-1][:1] = 200
    return brightness(images)


def leaving(images: Images) -> np.ndarray:
    raise SystemExit(3)


def test_good_reward_has_scores_and_no_remarks() -> None:
    found = quick_check("bright", Measured())
    assert (found.name, found.version, found.scores) == ("bright", "3", (1.0, 0.0))
    assert found.errors == found.warnings == []


def test_ocr_is_healthy() -> None:
    found = quick_check("ocr", build_reward("ocr", layout="line"))
    assert (found.scores, found.errors, found.warnings) == ((1.0, 0.0), [], [])


def test_lower_is_better_reward_is_ranked_the_other_way() -> None:
    found = quick_check("dark", measured(lambda images: 1 - brightness(images), higher_is_better=False))
    assert (found.scores, found.errors, found.warnings) == ((0.0, 1.0), [], [])


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (measured(lambda images: np.full(len(images), np.nan)), 'no score for the good image of its own calibration pair'),
        (measured(lambda images: np.full(len(images), np.inf)), "fails on the good image: score inf is not in"),
        (measured(lambda images: brightness(images) - 0.5), r"fails on the worthless image: score -0.5 is not in \[0, 1\]"),
        (measured(fails_on_second), "fails on the worthless image: smudged"),
        (measured(whitening), "fails: ValueError: assignment destination is read-only"),
        (measured(leaving), "fails: SystemExit: 3"),
        (measured(lambda images: brightness(images)[:1]), r"fails: ValueError: .*shape \[1\], expected \[2\]"),
        (measured(brightness, load=unavailable), r'^reward "big": download big\.pt$'),
        (measured(brightness, load=unloadable), "cannot be loaded: KeyError: 'layers.0'"),
        (measured(brightness, self_check=unavailable), r"download big\.pt"),
    ],
)  # fmt: skip
def test_reward_whose_numbers_cannot_be_used_is_an_error(reward: Reward, sentence: str) -> None:
    found = quick_check("x", reward)
    assert len(found.errors) >= 1
    assert re.search(sentence, found.errors[0]), found.errors


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        (measured(lambda images: np.full(len(images), 0.25)), r'"x" scores its good and its worthless image alike \(0\.25\)'),
        (
            measured(lambda images: 1 - brightness(images)),
            r"ranks its worthless image \(1\) above its good one \(0\); higher is",
        ),
        (measured(brightness, higher_is_better=False), "lower is better"),
        (measured(brightness, self_check=no_pair), "cannot make its calibration pair: OSError: no font"),
    ],
)
def test_reward_that_looks_wrong_is_a_warning(reward: Reward, sentence: str) -> None:
    found = quick_check("x", reward)
    assert found.errors == []
    assert len(found.warnings) == 1
    assert re.search(sentence, found.warnings[0]), found.warnings


def test_function_without_a_pair_scores_pictures_and_its_ranking_is_said_to_be_unknown() -> None:
    found = examine("plain", FunctionReward("plain", lambda images, prompts: brightness(images), {}))
    assert (found.scores, found.errors, found.warnings) == (None, [], [])
    assert found.seconds_per_image is not None
    assert len(found.not_examined) == 1
    assert "it has no calibration pair" in found.not_examined[0]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (reward(range=(0, 1))(lambda images, prompts: [2.0] * len(images)), r"fails on the blue sign: score 2 is not in \["),
        (lambda images, prompts: [np.inf if image.std() == 0 else 0.0 for image in images], "on the blank image: score inf"),
        (lambda images, prompts: [0.5] * len(images), r'"x" is constant: 0\.5 for every image'),
        (lambda images, prompts: brightness(images) + random.random(), "is not deterministic"),
        (lambda images, prompts: brightness(images) + len(images), "depends on the batch"),
    ],
)  # fmt: skip
def test_fault_of_a_function_without_a_pair_is_found(function: Callable[..., Any], sentence: str) -> None:
    found = examine("x", FunctionReward("x", function, {}))
    assert re.search(sentence, "; ".join([*found.errors, *found.warnings]))


def test_function_that_applies_to_no_picture_is_said_not_to_be_examined() -> None:
    found = examine("x", FunctionReward("x", lambda images, prompts: [np.nan] * len(images), {}))
    assert (found.errors, found.warnings) == ([], [])
    assert "its scores: it applies to none of the images it was shown" in found.not_examined[1]


def test_check_before_training_raises_every_error_in_one_sentence() -> None:
    parts = [Component("a", measured(brightness, load=unavailable)), Component("b", Measured()),
             Component("c", measured(fails_on_second), weight=0.0)]  # fmt: skip
    with pytest.raises(RewardUnavailableError, match=r'download big\.pt; reward "c" fails on the worthless image: smudged'):
        check_before_training(CompositeReward(parts))
    assert [health.name for health in check_before_training(CompositeReward(parts[1:2]))] == ["b"]


def state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]


def test_check_leaves_every_global_generator_as_it_was() -> None:
    def drawing(images: Images) -> np.ndarray:
        return np.clip(brightness(images) + 1e-3 * (random.random() + np.random.rand() + torch.rand(()).item()), 0, 1)

    before = state()
    examine("x", measured(drawing))
    assert state() == before
    with random_state_kept():
        drawing([WHITE])
        assert state() != before
    assert state() == before


def noisy() -> Callable[[Images], np.ndarray]:
    rng = np.random.default_rng(0)
    return lambda images: np.clip(brightness(images) + 0.01 * rng.random(len(images)), 0, 1)


def relative_to_batch(images: Images) -> np.ndarray:
    scores = brightness(images)
    return scores / 2 + scores.mean() / 2


def no_score_alone(images: Images) -> np.ndarray:
    return brightness(images) if len(images) > 1 else np.array([np.nan])


def fails_on_noise(images: Images) -> np.ndarray:
    noise = [index for index, image in enumerate(images) if 0 < image.std() < 90]
    if noise:
        raise RewardError("measured", dict.fromkeys(noise, "too noisy"))
    return brightness(images)


def test_failure_on_another_image_than_the_pair_is_an_error() -> None:
    found = examine("x", measured(fails_on_noise), batch=4)
    assert found.errors == ['reward "x" fails on the image of noise: too noisy']


@pytest.mark.parametrize(
    ("measure", "sentence"),
    [
        (noisy(), "is not deterministic: the same batch again differs by 0.0"),
        # Alone, black is 0; among white, noise and mirrored white it is mean / 2 = (1 + 0 + noise + 1) / 8.
        (relative_to_batch, f"depends on the batch: an image scored alone differs by {(2 + NOISE) / 8:.2g} from the same"),
        (no_score_alone, "depends on the batch: an image scored alone differs by inf"),
        (lambda images: np.full(len(images), 0.25), "is constant: 0.25 for every image"),
    ],
)
def test_examination_finds(measure: Callable[[Images], np.ndarray], sentence: str) -> None:
    pair = WHITE.copy(), BLACK.copy(), Prompt("p", "any")
    found = examine("x", measured(measure, self_check=lambda self: pair), batch=4)
    assert found.errors == []
    assert any(sentence in warning for warning in found.warnings), found.warnings


class Unsteady(torch.nn.Module):
    """A vision tower that adds something to what it gives: another number at each call, or the size of the batch."""

    def __init__(self, tower: torch.nn.Module, what: str) -> None:
        super().__init__()
        self.tower, self.what, self.calls = tower, what, 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        given: torch.Tensor = self.tower(pixels)
        more = torch.arange(given.shape[-1]) * float(len(pixels) if self.what == "batch" else self.calls)
        return given + more


@pytest.mark.parametrize(("what", "sentence"), [("call", "is not deterministic"), ("batch", "depends on the batch")])
def test_model_that_is_unsteady_is_found_although_its_features_are_remembered(tmp_path: Path, what: str, sentence: str) -> None:
    reward = build_reward("clip", **entry_of("clip").write_tiny(tmp_path))
    forget_models()
    reward.load()
    [shared] = loaded_models().values()
    shared.module.visual = Unsteady(shared.module.visual, what)
    found = examine("x", reward)
    forget_models()
    assert any(sentence in warning for warning in found.warnings), found.warnings


def test_every_image_of_the_timed_batch_is_computed(tmp_path: Path) -> None:
    reward = build_reward("clip", **entry_of("clip").write_tiny(tmp_path))
    forget_models()
    reward.load()
    [shared] = loaded_models().values()
    seen: list[int] = []
    shared.module.visual.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    examine("x", reward, batch=6)
    forget_models()
    # The pair; twice the batch of six, no two alike and nothing remembered; four of its images alone.
    assert seen == [2, 6, 6, 1, 1, 1, 1]


def entry_of(name: str) -> type[Reward]:
    entry = rewards.get(name)
    assert isinstance(entry, type)
    assert issubclass(entry, Reward)
    return entry


def test_examination_of_a_good_reward_measures_and_flags_nothing() -> None:
    found = examine("x", Measured(), batch=8)
    assert (found.errors, found.warnings, found.batch) == ([], [], 8)
    assert found.seconds_per_image is not None
    assert 0 < found.seconds_per_image < 1
    assert found.memory is not None
    assert found.packages["numpy"] == np.__version__


def test_parameters_of_models_loaded_for_a_reward_are_counted_once() -> None:
    def load(self: Reward) -> None:
        shared_model(("test_health", "linear"), Placement("cpu"), lambda: (torch.nn.Linear(5, 3), {}))

    forget_models()
    # 5 · 3 weights and 3 biases; the second reward finds the model loaded.
    assert [examine(name, measured(brightness, load=load)).parameters for name in ("a", "b")] == [18, 0]
    forget_models()


def test_packages_are_those_that_the_rewards_code_imports() -> None:
    ocr = build_reward("ocr", layout="line")
    ocr.load()
    used = packages_of(ocr)
    assert used["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert "diffusers" not in used
    assert "xomni-rl" not in used


def test_hashes_cover_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    contents = {tmp_path / "model/a.bin": b"a", tmp_path / "model/deep/b.bin": b"bb", tmp_path / "judge.txt": b"yes?"}
    for path, content in contents.items():
        path.write_bytes(content)
    reward = measured(brightness, files=lambda self: (tmp_path / "model", tmp_path / "judge.txt"))
    assert hashes_of(reward) == {str(path): hashlib.sha256(content).hexdigest() for path, content in contents.items()}
    missing = measured(brightness, files=lambda self: (tmp_path / "gone.pt",))
    with pytest.raises(RewardUnavailableError, match=r'reward "measured": .*gone\.pt cannot be read'):
        hashes_of(missing)
