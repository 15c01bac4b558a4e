"""pickscore against transformers' modules fed by hand from the same files; damaged, missing and foreign weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardResult, RewardUnavailableError
from xomni_rl.rewards.models import forget_models
from xomni_rl.rewards.pickscore import PickScoreReward

TEXTS = ("a red circle", "ein Bär, 熊 — don't", "word " * 120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pickscore")
    PickScoreReward.write_tiny(made)
    return made


def images() -> list[np.ndarray]:
    """Three sizes; the margins of the last are odd."""
    rng = np.random.default_rng(4)
    return [rng.integers(0, 256, (height, width, 3)).astype(np.uint8) for height, width in ((32, 96), (224, 224), (301, 235))]


def prompts() -> list[Prompt]:
    return [Prompt(str(index), text) for index, text in enumerate(TEXTS)]


def score(folder: Path, **options: Any) -> RewardResult:
    return PickScoreReward(str(folder), **options)(images(), prompts())


def published_pixels(image: np.ndarray) -> torch.Tensor:
    """Shortest side to 224 by Pillow's bicubic, centre crop rounded down, CLIP's mean and deviation."""
    height, width = image.shape[:2]
    scale = 224 / min(height, width)
    wide, high = int(width * scale + 1e-9), int(height * scale + 1e-9)
    left, top = (wide - 224) // 2, (high - 224) // 2
    cut = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((torch.tensor(np.asarray(cut)) / 255 - mean) / std).permute(2, 0, 1)[None]


def published_ids(folder: Path, text: str) -> torch.Tensor:
    """Byte-level BPE with CLIP's rules, whose tiny vocabulary has no merges: each byte a token, a word's last one with </w>."""
    import regex
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words = regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", text.lower())
    letters = [[bytes_to_unicode()[byte] for byte in word.encode()] for word in words]
    tokens = [token for word in letters for token in (*word[:-1], word[-1] + "</w>")][:75]
    return torch.tensor([[vocabulary[token] for token in ("<|startoftext|>", *tokens, "<|endoftext|>")]])


def independent_scores(folder: Path) -> list[float]:
    """One pair at a time: the towers and projections called one by one, on tensors read from the file by name."""
    from transformers import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPVisionModel

    config = CLIPConfig.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    text_tower, vision_tower = CLIPTextModel(config.text_config).eval(), CLIPVisionModel(config.vision_config).eval()
    for tower, prefix in ((text_tower, "text_model."), (vision_tower, "vision_model.")):
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        names = {name.removeprefix(prefix): name for name in own}
        wanted = {name: names.get(name.removeprefix(prefix), name) for name in tower.state_dict()}
        tower.load_state_dict({name: own[source] for name, source in wanted.items()})
    scores = []
    for image, text in zip(images(), TEXTS, strict=True):
        with torch.no_grad():
            i = vision_tower(pixel_values=published_pixels(image)).pooler_output @ tensors["visual_projection.weight"].T
            t = text_tower(input_ids=published_ids(folder, text)).pooler_output @ tensors["text_projection.weight"].T
        cosine = (i / i.norm()).flatten() @ (t / t.norm()).flatten()
        scores.append(float(tensors["logit_scale"].exp() * cosine))
    return scores


def test_scores_equal_an_independent_computation(folder: Path) -> None:
    np.testing.assert_allclose(score(folder).scores, independent_scores(folder), rtol=0, atol=1e-5)


def test_scores_of_the_three_pairs_differ(folder: Path) -> None:
    assert np.ptp(score(folder).scores) > 0.01


def test_order_of_texts_and_repeated_prompts_do_not_matter(folder: Path) -> None:
    reward = PickScoreReward(str(folder), batch_size=2)
    pictures, asked = images() * 2, prompts() * 2
    order = [4, 0, 3, 2, 5, 1]
    mixed = reward([pictures[i] for i in order], [asked[i] for i in order]).scores
    np.testing.assert_allclose(mixed, np.tile(score(folder).scores, 2)[order], rtol=0, atol=1e-5)


def test_detail_tells_cosine_and_whether_the_prompt_was_cut(folder: Path) -> None:
    result = score(folder)
    assert [detail["cut"] for detail in result.details] == [False, False, True]
    scale = float(load_file(folder / "model.safetensors")["logit_scale"].exp())
    np.testing.assert_allclose([d["cosine"] * scale for d in result.details], result.scores, atol=1e-4)


def test_batches_of_one_score_the_same(folder: Path) -> None:
    np.testing.assert_allclose(score(folder, batch_size=1).scores, score(folder).scores, rtol=0, atol=1e-5)


def test_bfloat16_is_near_float32(folder: Path) -> None:
    np.testing.assert_allclose(score(folder, dtype="bfloat16").scores, score(folder).scores, atol=0.15)  # 1 % of the scale


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (8, 4000)])
def test_freak_sizes_are_scored(folder: Path, shape: tuple[int, int]) -> None:
    result = PickScoreReward(str(folder))([np.zeros((*shape, 3), np.uint8)], prompts()[:1])
    assert np.isfinite(result.scores[0])


def test_grey_image_is_scored(folder: Path) -> None:
    result = PickScoreReward(str(folder))([Image.new("L", (40, 30), 99)], prompts()[:1])
    assert np.isfinite(result.scores[0])


def changed(folder: Path, target: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of the folder whose tensors are replaced, or left out where None."""
    shutil.copytree(folder, target)
    kept = load_file(folder / "model.safetensors") | tensors
    save_file({name: t for name, t in kept.items() if t is not None}, target / "model.safetensors", {"format": "pt"})
    return target


def test_positions_that_older_checkpoints_hold_are_ignored(folder: Path, tmp_path: Path) -> None:
    older = changed(folder, tmp_path / "old", **{"text_model.embeddings.position_ids": torch.arange(77)[None]})
    np.testing.assert_array_equal(score(older).scores, score(folder).scores)


def test_nan_from_the_model_is_a_failure_that_keeps_the_others(folder: Path, tmp_path: Path) -> None:
    # NaN in one byte's embedding reaches only the prompts in which it occurs: "熊" holds the byte 0xE7.
    reference = load_file(folder / "model.safetensors")["text_model.embeddings.token_embedding.weight"]
    only_second = set(published_ids(folder, TEXTS[1])[0].tolist())
    only_second -= {int(i) for text in (TEXTS[0], TEXTS[2]) for i in published_ids(folder, text)[0]}
    poisoned = reference.clone()
    poisoned[min(only_second)] = torch.nan
    bad = changed(folder, tmp_path / "nan", **{"text_model.embeddings.token_embedding.weight": poisoned})
    with pytest.raises(RewardError, match="sample 1: the model gave a score that is not a number") as caught:
        score(bad)
    assert list(caught.value.failures) == [1]
    assert caught.value.partial is not None
    np.testing.assert_allclose(caught.value.partial.scores[[0, 2]], score(folder).scores[[0, 2]], atol=1e-5)
    assert np.isnan(caught.value.partial.scores[1])


def test_missing_tensor_is_refused_instead_of_drawn_at_random(folder: Path, tmp_path: Path) -> None:
    bad = changed(folder, tmp_path / "missing", **{"visual_projection.weight": None})
    with pytest.raises(RewardUnavailableError, match=r"the tensor visual_projection\.weight is missing.*PickScore_v1"):
        score(bad)


def test_tensor_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    bad = changed(folder, tmp_path / "shape", **{"visual_projection.weight": torch.zeros(3, 64)})
    with pytest.raises(RewardUnavailableError, match="cannot be loaded"):
        score(bad)


def test_damaged_file_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "cut")
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RewardUnavailableError, match=r"cut cannot be loaded.*download PickScore_v1.*licence: MIT"):
        score(tmp_path / "cut")


def test_pickled_weights_are_not_executed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bin")
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(RewardUnavailableError, match="cannot be loaded"):
        score(tmp_path / "bin")


def test_folder_without_configuration_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(RewardUnavailableError, match=r"is not a model folder with a config\.json.*weights=PATH"):
        score(tmp_path)


def test_missing_weights_name_download_place_and_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RewardUnavailableError, match=r'reward "pickscore".*huggingface\.co/yuvalkirstain.*licence: MIT'):
        PickScoreReward("/nowhere/pickscore").load()


def test_tokenizer_may_lie_in_another_folder(folder: Path, tmp_path: Path) -> None:
    expected = score(folder).scores
    shutil.copytree(folder, tmp_path / "weights")
    (tmp_path / "processor").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "weights" / name).rename(tmp_path / "processor" / name)
    found = score(tmp_path / "weights", processor=str(tmp_path / "processor")).scores
    np.testing.assert_array_equal(found, expected)


def test_missing_tokenizer_says_what_to_put_where(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "weights")
    (tmp_path / "weights" / "tokenizer.json").unlink()
    with pytest.raises(RewardUnavailableError, match=r"the tokenizer /nowhere/processor cannot be loaded.*tokenizer\.json"):
        score(tmp_path / "weights", processor="/nowhere/processor")


def test_files_are_weights_configuration_and_tokenizer(folder: Path) -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in PickScoreReward(str(folder)).files()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float8"}, 'unknown dtype "float8"'), ({"batch_size": 0}, "must be a whole number of at least 1, got 0")],
)
def test_bad_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PickScoreReward(**options)


def test_model_is_loaded_once_for_two_rewards(folder: Path) -> None:
    forget_models()
    first, second = PickScoreReward(str(folder)), PickScoreReward(str(folder), batch_size=1)
    assert first._model() is second._model()
