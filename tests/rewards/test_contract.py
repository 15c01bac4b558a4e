"""What every registered reward must do, whatever it scores."""

import copy
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xomni_rl.images import to_rgb
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import (
    FunctionReward,
    Reward,
    RewardError,
    RewardResult,
    RewardUnavailableError,
    build_reward,
    rewards,
)
from xomni_rl.rewards.open_clip_backbone import forget_features

NAMES = [name for name in rewards.names() if name != "remote"]  # it needs a server: test_remote.py
WITH_WEIGHTS = ("aesthetic", "clip", "hpsv2", "hpsv2.1", "imagereward", "pickscore", "rules", "unified_reward", "vlm_alignment")
TOLERANCE = 1e-5
"""Of scores, relative to their size: a batch's matrix products round differently from a single's."""


@dataclass(frozen=True)
class Case:
    """A reward, and whether its weights are random: then it works but cannot tell good from bad."""

    reward: Reward
    random: bool


@pytest.fixture(params=NAMES, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The reward with its default options if that works here, else on the tiny random checkpoint that it writes."""
    made = build_reward(request.param)
    try:
        made.load()
    except RewardUnavailableError:
        options = type(made).write_tiny(tmp_path_factory.mktemp(request.param))
        assert options, f"{request.param} cannot be loaded here and writes no tiny checkpoint"
        return Case(build_reward(request.param, **options), random=True)
    return Case(made, random=False)


@pytest.fixture
def reward(case: Case) -> Reward:
    return case.reward


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """What a model made of an image in another test is not looked up here."""
    forget_features()


def goodness(reward: Reward, scores: np.ndarray) -> np.ndarray:
    return scores if reward.higher_is_better else -scores


def alone(reward: Reward, image: np.ndarray, prompt: Prompt) -> float:
    """The score of one image, computed anew."""
    forget_features()
    return float(reward([image], [prompt]).scores[0])


def test_ocr_is_registered() -> None:
    assert "ocr" in NAMES


def test_good_image_beats_worthless_one(case: Case) -> None:
    if case.random:
        pytest.skip("random weights")
    reward = case.reward
    good, worthless, prompt = reward.self_check()
    scores = reward([good, worthless], [prompt, prompt]).scores
    assert goodness(reward, scores)[0] > goodness(reward, scores)[1]


def test_scores_are_float32_in_the_declared_range(reward: Reward) -> None:
    good, worthless, prompt = reward.self_check()
    noise = np.random.default_rng(0).integers(0, 256, good.shape).astype(np.uint8)
    result = reward([good, worthless, noise], [prompt] * 3)
    assert result.scores.dtype == np.float32
    assert result.scores.shape == (3,)
    assert len(result.details) == 3
    assert (result.scores >= reward.range[0]).all()
    assert (result.scores <= reward.range[1]).all()
    assert all(values.shape == (3,) and values.dtype == np.float32 for values in result.metrics.values())


def test_same_input_gives_same_scores(reward: Reward) -> None:
    good, worthless, prompt = reward.self_check()
    first = reward([good, worthless], [prompt] * 2).scores
    forget_features()
    np.testing.assert_array_equal(reward([good, worthless], [prompt] * 2).scores, first)


def test_batch_equals_singles(reward: Reward) -> None:
    good, worthless, prompt = reward.self_check()
    images = [good, worthless, good[:, ::-1].copy(), good]
    together = reward(images, [prompt] * 4).scores
    singles = [alone(reward, image, prompt) for image in images]
    np.testing.assert_allclose(together, singles, rtol=TOLERANCE, atol=TOLERANCE)


def test_images_of_different_sizes_score_as_alone(reward: Reward) -> None:
    good, worthless, prompt = reward.self_check()
    images = [good, np.repeat(np.repeat(worthless, 2, axis=0), 2, axis=1), good[: len(good) // 2 + 1]]
    together = reward(images, [prompt] * 3).scores
    singles = [alone(reward, image, prompt) for image in images]
    np.testing.assert_allclose(together, singles, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "CMYK"])
def test_picture_of_another_mode_scores_as_its_rgb_form(reward: Reward, mode: str) -> None:
    good, _, prompt = reward.self_check()
    if mode == "I;16":
        picture = Image.fromarray(good.mean(axis=-1).astype(np.uint16) * 257)
        assert picture.mode == "I;16"
    else:
        picture = Image.fromarray(good).convert(mode)
    scores = reward([picture], [prompt]).scores
    np.testing.assert_array_equal(scores, reward([to_rgb(picture)], [prompt]).scores)


def test_one_pixel_is_scored_or_fails_by_its_index(reward: Reward) -> None:
    _, _, prompt = reward.self_check()
    failed: list[int] = []
    try:
        reward([np.zeros((1, 1, 3), np.uint8)], [prompt])  # __call__ checks form and range of the score
    except RewardError as error:
        failed = list(error.failures)
    assert failed in ([], [0])


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@pytest.mark.parametrize("found", ["nothing", "garbage", "an empty folder"])
def test_missing_and_wrong_weights_are_one_sentence_with_download_place_and_licence(
    name: str, found: str, tmp_path: Path
) -> None:
    place = tmp_path / "weights"
    (tmp_path / "tiny").mkdir()
    if found == "garbage":
        place.write_bytes(b"no weights")
    elif found == "an empty folder":
        place.mkdir()
    entry = rewards.get(name)
    assert isinstance(entry, type)
    options = entry.write_tiny(tmp_path / "tiny") | {"weights": str(place)}
    with pytest.raises(RewardUnavailableError) as caught:
        build_reward(name, **options).load()
    said = str(caught.value)
    assert "\n" not in said
    assert re.match(
        rf'reward "{re.escape(name)}": .*{place}.*; download \S.* from https://\S+ \(licence: .+\) .*weights=PATH', said
    )


def test_files_that_decide_the_scores_exist(reward: Reward) -> None:
    reward.load()
    assert all(path.exists() for path in reward.files())


def test_prompt_without_facts_is_scored_or_not_applicable_with_a_reason(reward: Reward) -> None:
    good, _, _ = reward.self_check()
    result = reward([good, good], [Prompt("p", "a quiet street"), Prompt("q", "rain")])
    for score, detail in zip(result.scores, result.details, strict=True):
        assert np.isfinite(score) or detail.get("reason")


def test_array_list_and_pil_images_score_the_same(reward: Reward) -> None:
    good, _, prompt = reward.self_check()
    forms = good[None], [good], [Image.fromarray(good)]
    scores = [reward(images, [prompt]).scores[0] for images in forms]
    assert scores == [scores[0]] * 3


def test_images_are_not_changed(reward: Reward) -> None:
    good, _, prompt = reward.self_check()
    images = np.stack([good])
    before = images.copy()
    reward(images, [prompt])
    np.testing.assert_array_equal(images, before)


def test_no_images_give_no_scores(reward: Reward) -> None:
    assert reward([], []).scores.shape == (0,)


def test_reward_survives_copying_to_another_process(reward: Reward) -> None:
    good, worthless, prompt = reward.self_check()
    scores = reward([good, worthless], [prompt] * 2).scores  # models are loaded by now
    for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        np.testing.assert_array_equal(twin([good, worthless], [prompt] * 2).scores, scores)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        ["picture.png"],
        [np.zeros((0, 8, 3), np.uint8)],
        np.zeros((1, 8, 0, 3), np.uint8),
        Image.new("RGB", (8, 8)),
    ],
)
def test_wrong_images_raise_and_do_not_score(reward: Reward, images: object) -> None:
    with pytest.raises(ValueError, match=r"image"):
        reward(images, [Prompt("p", "p")])  # type: ignore[arg-type]


def test_wrong_number_of_prompts_raises(reward: Reward) -> None:
    good, _, prompt = reward.self_check()
    with pytest.raises(ValueError, match="got 1 images and 2 prompts"):
        reward([good], [prompt, prompt])


def test_attributes_are_declared(reward: Reward) -> None:
    low, high = reward.range
    assert low < high
    assert reward.name
    assert reward.version
    assert reward.cost
    assert reward.floor in (low, high)


def with_kinds(images: object, prompts: object, count: int = 1, share: float | None = None, names: Sequence[str] = ()) -> Any:
    """A plain function with annotated options."""


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"count": "2"}, "option count of .* must be a whole number, got '2'"),
        ({"count": 2.5}, "must be a whole number, got 2.5"),
        ({"count": True}, "must be a whole number, got True"),
        ({"share": "half"}, "option share of .* must be a number or null, got 'half'"),
        ({"names": "one"}, "option names of .* must be a list, got 'one'"),
    ],
)
def test_option_of_another_kind_is_refused_with_what_it_must_be(options: dict[str, Any], kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        build_reward(f"{__name__}:with_kinds", **options)


def test_options_of_the_right_kind_and_unknown_annotations_are_let_through(tmp_path: Path) -> None:
    build_reward(f"{__name__}:with_kinds", count=2, share=1, names=["a"])
    build_reward("clip", model=tmp_path)  # a path is text too
    (tmp_path / "annotated.py").write_text("def f(images, prompts, a: 'NoSuchType' = 1, b: dict = None):\n    return []\n")
    build_reward(f"{tmp_path}/annotated.py:f", a="x", b=[1])


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("ocr", {"workers": "2"}, "a whole number or null"),
        ("ocr", {"min_confidence": "high"}, "a number or null"),
        ("ocr", {"ignore_case": "no"}, "true or false"),
        ("ocr", {"engine_options": ["device"]}, "a mapping or null"),
        ("rules", {"threshold": "0.5"}, "a number"),
        ("pickscore", {"weights": 3}, "text or null"),
        ("hpsv2", {"offload": "yes"}, "true or false"),
        ("hpsv2.1", {"offload": "yes"}, "true or false"),
        ("vlm_alignment", {"judge_prompt": 3}, "text or null"),
        ("unified_reward", {"max_new_tokens": "128"}, "a whole number"),
    ],
)
def test_yaml_of_another_kind_is_refused_by_every_reward(name: str, options: dict[str, Any], kind: str) -> None:
    [option] = options
    with pytest.raises(ValueError, match=rf'option {option} of reward "{re.escape(name)}" must be {kind}, got '):
        build_reward(name, **options)


def test_result_of_wrong_length_raises() -> None:
    short = FunctionReward("short", lambda images, prompts: [0.5], {})
    with pytest.raises(ValueError, match=r"returned scores of shape \[1\], expected \[2\]"):
        short(np.zeros((2, 8, 8, 3), np.uint8), [Prompt("a", "a"), Prompt("b", "b")])


def test_infinite_score_is_a_failure_that_keeps_the_others() -> None:
    wild = FunctionReward("wild", lambda images, prompts: [0.5, np.inf], {})
    with pytest.raises(RewardError) as caught:
        wild(np.zeros((2, 8, 8, 3), np.uint8), [Prompt("a", "a"), Prompt("b", "b")])
    assert list(caught.value.failures) == [1]
    assert caught.value.partial is not None
    np.testing.assert_array_equal(caught.value.partial.scores, np.array([0.5, np.nan], np.float32))


def test_error_lists_first_failures_and_counts_the_rest() -> None:
    error = RewardError("x", dict.fromkeys(range(5), "broken"), RewardResult(np.zeros(5), [{}] * 5))
    assert str(error) == ('reward "x" failed on 5 sample(s): sample 0: broken; sample 1: broken; sample 2: broken; and 2 more')


def test_plain_function_of_the_working_directory_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path
    (folder / "brightness_of_a_user.py").write_text(
        "def brightness(images, prompts, scale=1.0):\n    return [scale * image.mean() / 255 for image in images]\n"
    )
    monkeypatch.chdir(folder)
    bright = build_reward("brightness_of_a_user:brightness", scale=2.0)
    assert bright(np.full((1, 8, 8, 3), 255, np.uint8), [Prompt("a", "a")]).scores.tolist() == [2.0]
    with pytest.raises(ValueError, match='"scael"; nearest: scale'):
        build_reward("brightness_of_a_user:brightness", scael=2.0)
    with pytest.raises(NotImplementedError, match="self_check"):
        bright.self_check()
