"""The aesthetic reward against the published recipe on a tiny model of the same architecture."""

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

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.aesthetic import AestheticReward, sunset
from xomni_rl.rewards.base import RewardError, RewardUnavailableError
from xomni_rl.rewards.open_clip_backbone import forget_features

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, as published
PROMPTS = [Prompt(str(i), "anything") for i in range(4)]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return AestheticReward.write_tiny(tmp_path_factory.mktemp("aesthetic"))


def pictures() -> list[np.ndarray]:
    """Smooth random images of different sizes: uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)) for _ in range(4)]
    return [np.asarray(s.resize(size[::-1])) for s, size in zip(small, [(40, 40), (64, 33), (32, 96), (20, 27)], strict=True)]


def cropped(image: np.ndarray, side: int = 32) -> torch.Tensor:
    """CLIP's published preprocessing by PIL and numpy: short side to 32, bicubic; middle; normalised."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (side, int(height * scale)) if width <= height else (int(width * scale), side)
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    pixels = np.asarray(resized.crop((left, top, left + side, top + side))).astype(np.float32) / 255
    return torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


def expected_marks(options: dict[str, Any], images: list[np.ndarray]) -> np.ndarray:
    """One by one: unit features through five matrices in a row, W₇(W₆(W₄(W₂(W₀ f + b₀) + b₂) + b₄) + b₆) + b₇, in float64."""
    config = json.loads(Path(options["architecture"]).read_text())
    assert config["quick_gelu"]
    model = open_clip.CLIP(**config).eval()
    model.load_state_dict(load_file(options["backbone"]))
    head = torch.load(options["weights"], weights_only=True)
    marks = []
    for image in images:
        with torch.inference_mode():
            value = model.encode_image(cropped(image)[None])[0].double().numpy()
        value = value / np.linalg.norm(value)
        for layer in (0, 2, 4, 6, 7):
            value = head[f"layers.{layer}.weight"].double().numpy() @ value + head[f"layers.{layer}.bias"].double().numpy()
        marks.append(float(value[0]))
    return np.array(marks)


def test_score_equals_the_published_recipe(options: dict[str, Any]) -> None:
    result = AestheticReward(**options)(pictures(), PROMPTS)
    expected = expected_marks(options, pictures())
    np.testing.assert_allclose(result.scores, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 1e-3
    assert result.details[2] == {"mark": pytest.approx(expected[2], abs=1e-4)}


def test_head_has_the_published_keys(options: dict[str, Any]) -> None:
    head = torch.load(options["weights"], weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in head.items() if name.endswith("weight")} == {
        "layers.0.weight": (1024, 16),  # 768 in the published file, whose features are that long
        "layers.2.weight": (128, 1024),
        "layers.4.weight": (64, 128),
        "layers.6.weight": (16, 64),
        "layers.7.weight": (1, 16),
    }


def test_default_is_openais_quick_gelu_vit_l_14() -> None:
    assert AestheticReward().backbone.model == "ViT-L-14-quickgelu"
    assert open_clip.get_model_config("ViT-L-14-quickgelu")["quick_gelu"]
    published = open_clip.get_pretrained_cfg("ViT-L-14-quickgelu", "openai")["hf_hub"]
    assert published == f"{AestheticReward().backbone.source.repo}/"  # type: ignore[union-attr]


def test_batch_equals_singles_computed_anew(options: dict[str, Any]) -> None:
    reward = AestheticReward(**options, batch_size=3)
    together = reward(pictures(), PROMPTS).scores
    for index, image in enumerate(pictures()):
        forget_features()
        assert reward([image], PROMPTS[:1]).scores[0] == pytest.approx(together[index], abs=1e-6)


def test_prompt_does_not_matter(options: dict[str, Any]) -> None:
    reward = AestheticReward(**options)
    image = pictures()[:1]
    assert reward(image, [Prompt("a", "a")]).scores == reward(image, [Prompt("b", "something else")]).scores


def test_missing_head_and_missing_backbone_are_told_apart(options: dict[str, Any]) -> None:
    with pytest.raises(RewardUnavailableError) as caught:
        AestheticReward(**options | {"weights": "none.pth"}).load()
    assert str(caught.value) == (
        'reward "aesthetic": none.pth does not exist; download sac+logos+ava1-l14-linearMSE.pth from '
        "https://github.com/christophschuhmann/improved-aesthetic-predictor (licence: Apache-2.0) "
        "and give its path as the option weights=PATH"
    )
    with pytest.raises(RewardUnavailableError) as caught:
        AestheticReward(**options | {"backbone": "none.pt"}).load()
    assert str(caught.value) == (
        'reward "aesthetic": none.pt does not exist; download open_clip_model.safetensors from '
        "https://huggingface.co/timm/vit_large_patch14_clip_224.openai (licence: MIT) "
        "and give its path as the option backbone=PATH"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers.6.bias": None}, "layers.6.bias is missing"),
        ({"layers.0.weight": torch.zeros(1024, 768)}, r"layers.0.weight is \[1024, 768\] instead of \[1024, 16\]"),
    ],
)
def test_wrong_head_names_the_tensor(options: dict[str, Any], tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    head = torch.load(options["weights"], weights_only=True) | change
    torch.save({k: v for k, v in head.items() if v is not None}, tmp_path / "head.pth")
    with pytest.raises(RewardUnavailableError, match=rf"head\.pth is not sac.*\.pth \({reason}\)"):
        AestheticReward(**options | {"weights": str(tmp_path / "head.pth")}).load()


def test_truncated_head_is_named(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "head.pth").write_bytes(Path(options["weights"]).read_bytes()[:5000])
    with pytest.raises(RewardUnavailableError, match=r"head\.pth cannot be read .*download sac"):
        AestheticReward(**options | {"weights": str(tmp_path / "head.pth")}).load()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_mark_that_is_no_number_is_a_failure(options: dict[str, Any], tmp_path: Path, bad: float) -> None:
    head = torch.load(options["weights"], weights_only=True)
    head["layers.7.bias"][0] = bad
    torch.save(head, tmp_path / "head.pth")
    with pytest.raises(RewardError, match='"aesthetic" failed on 4 sample') as caught:
        AestheticReward(**options | {"weights": str(tmp_path / "head.pth")})(pictures(), PROMPTS)
    assert list(caught.value.failures) == [0, 1, 2, 3]


def test_nan_in_the_backbone_is_a_failure(options: dict[str, Any], tmp_path: Path) -> None:
    tensors = load_file(options["backbone"])
    tensors["visual.proj"][0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(RewardError, match="failed on 4 sample"):
        AestheticReward(**options | {"backbone": str(tmp_path / "nan.safetensors")})(pictures(), PROMPTS)


def test_reward_survives_pickling_and_copying_after_scoring(options: dict[str, Any]) -> None:
    reward = AestheticReward(**options)
    scores = reward(pictures(), PROMPTS).scores
    for twin in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        np.testing.assert_array_equal(twin(pictures(), PROMPTS).scores, scores)


def test_all_three_files_decide_the_score(options: dict[str, Any]) -> None:
    assert [str(file) for file in AestheticReward(**options).files()] == [
        options["architecture"],
        options["backbone"],
        options["weights"],
    ]


def test_self_check_draws_a_picture_with_a_sun_over_dark_water() -> None:
    picture = sunset(64)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert picture[30:34, 30:34].min() > picture[56:, :8].max() + 50
