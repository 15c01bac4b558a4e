"""hpsv2 and hpsv2.1 against the published recipe on a tiny model of the same architecture."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tvf

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardUnavailableError
from xomni_rl.rewards.clip import ClipReward
from xomni_rl.rewards.hpsv2 import HpsV2Reward, HpsV21Reward
from xomni_rl.rewards.open_clip_backbone import forget_features

PROMPTS = [Prompt(str(i), text) for i, text in enumerate(["a cat", "A Sunset over the sea", 'the word "K7AX"', "dog"])]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return HpsV2Reward.write_tiny(tmp_path_factory.mktemp("hps"))


def pictures(count: int = 4) -> list[np.ndarray]:
    """Smooth random images of different sizes: uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (64, 33), (32, 96), (32, 20)]
    small = [Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)) for _ in range(count)]
    return [np.asarray(image.resize(size[::-1])) for image, size in zip(small, sizes, strict=False)]


def padded(image: np.ndarray, side: int = 32) -> torch.Tensor:
    """The authors' preprocessing by torchvision: to a tensor, longest side fitted, zeros around, then normalised."""
    tensor = tvf.to_tensor(image.copy())
    scale = side / max(image.shape[:2])
    height, width = (round(length * scale) for length in image.shape[:2])
    tensor = tvf.resize(tensor, [height, width], tvf.InterpolationMode.BICUBIC, antialias=True)
    rest_h, rest_w = side - height, side - width
    tensor = tvf.pad(tensor, [rest_w // 2, rest_h // 2, rest_w - rest_w // 2, rest_h - rest_h // 2])
    return tvf.normalize(tensor, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def expected_scores(options: dict[str, Any], images: list[np.ndarray]) -> np.ndarray:
    """One by one on open_clip's own class: dot product of the normalised features, no logit scale."""
    model = open_clip.CLIP(**json.loads(Path(options["architecture"]).read_text())).eval()
    model.load_state_dict(torch.load(options["weights"], weights_only=True)["state_dict"])
    scores = []
    with torch.inference_mode():
        for image, prompt in zip(images, PROMPTS, strict=True):
            seen = model.encode_image(padded(image)[None], normalize=True)
            said = model.encode_text(open_clip.tokenize(prompt.text), normalize=True)
            scores.append(float((seen @ said.T)[0, 0]))
    return np.array(scores)


def test_score_equals_the_published_recipe(options: dict[str, Any]) -> None:
    scores = HpsV2Reward(**options)(pictures(), PROMPTS).scores
    expected = expected_scores(options, pictures())
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 0.01
    cropping = ClipReward(model=options["architecture"], weights=options["weights"])(pictures(), PROMPTS).scores
    assert np.abs(cropping - expected)[1:].max() > 1e-3  # clip's crop is not the same as this padding


def test_default_is_the_plain_gelu_vit_h_14() -> None:
    for reward in (HpsV2Reward(), HpsV21Reward()):
        assert reward.backbone.model == "ViT-H-14"
    assert not open_clip.get_model_config("ViT-H-14").get("quick_gelu", False)


def test_batch_equals_singles_computed_anew(options: dict[str, Any]) -> None:
    reward = HpsV2Reward(**options, batch_size=3)
    together = reward(pictures(), PROMPTS).scores
    for index, (image, prompt) in enumerate(zip(pictures(), PROMPTS, strict=True)):
        forget_features()
        assert reward([image], [prompt]).scores[0] == pytest.approx(together[index], abs=1e-6)


@pytest.mark.parametrize(("reward", "file"), [(HpsV2Reward, "HPS_v2_compressed.pt"), (HpsV21Reward, "HPS_v2.1_compressed.pt")])
def test_missing_weights_say_what_to_download_from_where_under_which_licence(reward: type[HpsV2Reward], file: str) -> None:
    with pytest.raises(RewardUnavailableError) as caught:
        reward(weights="none.pt").load()
    assert str(caught.value) == (
        f'reward "{reward.name}": none.pt does not exist; download {file} from https://huggingface.co/xswu/HPSv2 '
        "(licence: Apache-2.0) and give its path as the option weights=PATH"
    )


def test_published_file_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    options = HpsV21Reward.write_tiny(tmp_path)
    snapshot = tmp_path / "models--xswu--HPSv2" / "snapshots" / "0a"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--xswu--HPSv2" / "refs").mkdir()
    (tmp_path / "models--xswu--HPSv2" / "refs" / "main").write_text("0a")
    Path(options["weights"]).rename(snapshot / "HPS_v2.1_compressed.pt")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reward = HpsV21Reward(architecture=options["architecture"])
    assert reward.files()[1] == snapshot / "HPS_v2.1_compressed.pt"
    assert np.isfinite(reward(pictures(), PROMPTS).scores).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"visual.ln_post.weight": None}, "visual.ln_post.weight is missing"),
        ({"text_projection": torch.zeros(16, 3)}, r"text_projection is \[16, 3\] instead of \[16, 16\]"),
    ],
)
def test_wrong_checkpoint_names_the_tensor_and_the_right_file(
    options: dict[str, Any], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    tensors = torch.load(options["weights"], weights_only=True)["state_dict"] | change
    torch.save({"state_dict": {k: v for k, v in tensors.items() if v is not None}}, tmp_path / "w.pt")
    message = rf"w\.pt is not HPS_v2_compressed\.pt \({reason}\); download HPS_v2_compressed\.pt from https://huggingface\.co/xswu/HPSv2"
    with pytest.raises(RewardUnavailableError, match=message):
        HpsV2Reward(weights=str(tmp_path / "w.pt"), architecture=options["architecture"]).load()


def test_checkpoint_of_another_architecture_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RewardUnavailableError, match=r"is not HPS_v2_compressed\.pt"):
        HpsV2Reward(weights=options["weights"], architecture="RN50").load()


def test_nan_out_of_the_model_is_a_failure_of_its_samples(options: dict[str, Any], tmp_path: Path) -> None:
    tensors = torch.load(options["weights"], weights_only=True)["state_dict"]
    tensors["visual.conv1.weight"][:] = float("nan")
    torch.save({"state_dict": tensors}, tmp_path / "nan.pt")
    reward = HpsV2Reward(weights=str(tmp_path / "nan.pt"), architecture=options["architecture"])
    with pytest.raises(RewardError, match='"hpsv2" failed on 4 sample') as caught:
        reward(pictures(), PROMPTS)
    assert list(caught.value.failures) == [0, 1, 2, 3]


def test_reward_survives_pickling_after_scoring(options: dict[str, Any]) -> None:
    reward = HpsV21Reward(**options)
    scores = reward(pictures(), PROMPTS).scores
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reward))(pictures(), PROMPTS).scores, scores)


def test_no_images_need_no_weights() -> None:
    assert HpsV2Reward(weights="none.pt")([], []).scores.shape == (0,)
