"""The clip reward against the cosine computed by hand, and its failures."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardUnavailableError
from xomni_rl.rewards.clip import ClipReward
from xomni_rl.rewards.open_clip_backbone import forget_features

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, as published
PROMPTS = [Prompt(str(i), text) for i, text in enumerate(["a cat", "A Sunset over the sea", 'the word "K7AX"', "dog"])]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ClipReward.write_tiny(tmp_path_factory.mktemp("clip"))


def pictures(count: int = 4) -> list[np.ndarray]:
    """Smooth random images of different sizes: uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (64, 33), (32, 96), (20, 27)]
    small = [Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)) for _ in range(count)]
    return [np.asarray(image.resize(size[::-1])) for image, size in zip(small, sizes, strict=False)]


def cropped(image: np.ndarray, side: int = 32) -> torch.Tensor:
    """CLIP's published preprocessing by PIL and numpy: short side to 32, bicubic; middle; normalised."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (side, int(height * scale)) if width <= height else (int(width * scale), side)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    pixels = np.asarray(resized.crop((left, top, left + side, top + side))).astype(np.float32) / 255
    return torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


def expected_cosines(options: dict[str, Any], images: list[np.ndarray], prompts: list[Prompt]) -> np.ndarray:
    """One by one on open_clip's own class: i·t / (|i| |t|)."""
    model = open_clip.CLIP(**json.loads(Path(options["model"]).read_text())).eval()
    model.load_state_dict(load_file(options["weights"]))
    cosines = []
    with torch.inference_mode():
        for image, prompt in zip(images, prompts, strict=True):
            i = model.encode_image(cropped(image)[None])[0].double()
            t = model.encode_text(open_clip.tokenize([prompt.text]))[0].double()
            cosines.append(float(i @ t / (i.norm() * t.norm())))
    return np.array(cosines)


def test_score_is_the_cosine_of_image_and_prompt(options: dict[str, Any]) -> None:
    result = ClipReward(**options)(pictures(), PROMPTS)
    expected = expected_cosines(options, pictures(), PROMPTS)
    np.testing.assert_allclose(result.scores, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 0.01  # they are not all alike
    assert result.details[1] == {"cosine": pytest.approx(expected[1], abs=1e-5), "truncated": False}


def test_clipscore_is_two_and_a_half_times_the_positive_cosine(options: dict[str, Any]) -> None:
    reward = ClipReward(**options, units="clipscore")
    pairs = [(image, prompt) for image in pictures() for prompt in PROMPTS]
    images, prompts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    cosines = expected_cosines(options, images, prompts)
    assert cosines.min() < 0 < cosines.max()
    np.testing.assert_allclose(reward(images, prompts).scores, 2.5 * np.maximum(cosines, 0), rtol=0, atol=1e-5)
    assert reward.range == (0.0, 2.5)
    assert ClipReward(**options).range == (-1.0, 1.0)


def test_batch_equals_singles_computed_anew(options: dict[str, Any]) -> None:
    reward = ClipReward(**options, batch_size=3)
    together = reward(pictures(), PROMPTS).scores
    for index, (image, prompt) in enumerate(zip(pictures(), PROMPTS, strict=True)):
        forget_features()
        assert reward([image], [prompt]).scores[0] == pytest.approx(together[index], abs=1e-6)


def test_prompt_longer_than_the_context_is_cut_and_noted(options: dict[str, Any]) -> None:
    # "sea" is one token; 75 of them and the two marks fill the 77 places.
    fits, over = Prompt("f", " ".join(["sea"] * 75)), Prompt("o", " ".join(["sea"] * 76))
    result = ClipReward(**options)(pictures(2), [fits, over])
    assert [detail["truncated"] for detail in result.details] == [False, True]
    same = ClipReward(**options)(pictures(2)[:1] * 2, [fits, over]).scores
    assert same[0] == pytest.approx(same[1], abs=1e-6)  # what is beyond the context changes nothing


def test_no_images_need_no_model() -> None:
    assert ClipReward(model="no such model", weights="none.pt")([], []).scores.shape == (0,)


def test_nan_for_one_prompt_names_that_sample_and_keeps_the_others(options: dict[str, Any], tmp_path: Path) -> None:
    tensors = load_file(options["weights"])
    token = open_clip.tokenize(["zebra"])[0, 1]
    tensors["token_embedding.weight"][token] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    reward = ClipReward(model=options["model"], weights=str(tmp_path / "nan.safetensors"))
    prompts = [PROMPTS[0], Prompt("z", "a zebra"), PROMPTS[2]]
    with pytest.raises(
        RewardError, match=r'"clip" failed on 1 sample\(s\): sample 1: the model gave .* not a number'
    ) as caught:
        reward(pictures(3), prompts)
    assert list(caught.value.failures) == [1]
    assert caught.value.partial is not None
    expected = expected_cosines(options, pictures(3), prompts)
    np.testing.assert_allclose(caught.value.partial.scores[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-5)
    assert np.isnan(caught.value.partial.scores[1])


def test_clipscore_of_nan_is_a_failure_too(options: dict[str, Any], tmp_path: Path) -> None:
    tensors = load_file(options["weights"])
    tensors["visual.proj"][:] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    reward = ClipReward(model=options["model"], weights=str(tmp_path / "nan.safetensors"), units="clipscore")
    with pytest.raises(RewardError, match="failed on 4 sample"):
        reward(pictures(), PROMPTS)


def test_missing_weights_say_what_to_download(options: dict[str, Any]) -> None:
    reward = ClipReward(model=options["model"], weights="none.pt")
    with pytest.raises(RewardUnavailableError, match=r'"clip": none\.pt does not exist; download .* \(licence: .*weights=PATH'):
        reward(pictures(1), PROMPTS[:1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"units": "cosin"}, 'unknown units "cosin"; nearest: cosine'),
        ({"dtype": "float23"}, 'unknown dtype "float23"; nearest: float32'),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"weights": "w.pt"}, "the embedded model has its own weights"),
    ],
)
def test_bad_option_raises_when_it_is_given(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipReward(**wrong)


def test_reward_survives_pickling_and_copying_after_scoring(options: dict[str, Any]) -> None:
    reward = ClipReward(**options)
    scores = reward(pictures(), PROMPTS).scores
    for twin in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        np.testing.assert_array_equal(twin(pictures(), PROMPTS).scores, scores)


def test_embedded_model_tells_signs_apart() -> None:
    texts, colours = ["K7AX", "B2CD", "WXYZ", "9Q8P"], ["blue", "red", "green", "purple"]
    signs = [render_sign(text, colour) for text, colour in zip(texts, colours, strict=True)]
    prompts = [Prompt(t, f'a {c} sign that says "{t}"') for t, c in zip(texts, colours, strict=True)]
    pairs = [(sign, prompt) for sign in signs for prompt in prompts]
    scores = ClipReward()([pair[0] for pair in pairs], [pair[1] for pair in pairs]).scores.reshape(4, 4)
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_good_image_of_the_self_check_beats_the_worthless_one_with_default_options() -> None:
    good, worthless, prompt = ClipReward().self_check()
    scores = ClipReward()([good, worthless], [prompt] * 2).scores
    assert scores[0] > scores[1] + 0.3
    names = [file.name for file in ClipReward().files()]
    assert names == ["open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"]
