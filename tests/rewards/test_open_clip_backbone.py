"""The shared open_clip model: what it accepts as weights, what it refuses, and that nothing is computed twice."""

import json
import pickle
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import functional as tvf

from xomni_rl.prompts import Prompt
from xomni_rl.rewards.aesthetic import AestheticReward
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.clip import ClipReward
from xomni_rl.rewards.models import Placement
from xomni_rl.rewards.open_clip_backbone import TINY, FeatureMemory, OpenClipBackbone, forget_features, write_tiny_clip
from xomni_rl.rewards.open_clip_files import _middle, padded_input
from xomni_rl.weights import SIGNS_CLIP

TEXTS = ["a red sign", 'a blue sign that says "K7AX"', "nothing"]


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Smooth random images: uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    small = [rng.integers(0, 256, (6, 6, 3)).astype(np.uint8) for _ in sizes]
    return [np.asarray(Image.fromarray(s).resize(size[::-1])) for s, size in zip(small, sizes, strict=True)]


def tiny(folder: Path, name: str = "w.pt", **changes: Any) -> tuple[str, str]:
    """(configuration, checkpoint) of a tiny model; `changes` replace tensors, None leaves one out."""
    config, tensors = write_tiny_clip(folder)
    tensors = {key: value for key, value in (tensors | changes).items() if value is not None}
    torch.save({"state_dict": tensors}, folder / name)
    return str(config), str(folder / name)


def write_model_folder(folder: Path) -> Path:
    """A random model for 32×96 px with a byte-level tokenizer of its own, in the layout of open_clip's `local-dir:`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<eos>": 1} | {letter: 2 + index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    text = {"context_length": 24, "vocab_size": 258, "width": 16, "heads": 2, "layers": 1}
    text |= {"hf_tokenizer_name": ".", "pool_type": "eos", "eos_id": 1}
    model = TINY | {"vision_cfg": TINY["vision_cfg"] | {"image_size": [32, 96]}, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    torch.manual_seed(3)
    module = open_clip.CLIP(**json.loads(json.dumps(model)))
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@contextmanager
def counted(backbone: OpenClipBackbone, delay: float = 0.0) -> Iterator[list[int]]:
    """The batch sizes that go through the vision tower meanwhile."""
    sizes: list[int] = []
    forget_features()

    def note(module: Any, inputs: Any, output: Any) -> None:
        time.sleep(delay)
        sizes.append(len(inputs[0]))

    hook = backbone._open()[1].module.visual.register_forward_hook(note)
    yield sizes
    hook.remove()


def expected_from_folder(folder: Path, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Image and text features by open_clip's own loader, tokenizer and transform, one by one."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    with torch.inference_mode():
        seen = [model.encode_image(preprocess(Image.fromarray(image))[None])[0] for image in images]
        said = [model.encode_text(tokenizer([text]))[0] for text in TEXTS]
    return tuple(np.stack([(row / row.norm()).numpy() for row in rows]) for rows in (seen, said))  # type: ignore[return-value]


def test_folder_with_its_own_tokenizer_gives_what_open_clip_gives(tmp_path: Path) -> None:
    images = pictures((32, 96), (50, 40), (7, 300))
    backbone = OpenClipBackbone("x", str(write_model_folder(tmp_path)))
    seen, said = expected_from_folder(tmp_path, images)
    np.testing.assert_allclose(backbone.image_features(images), seen, rtol=0, atol=1e-6)
    features, cut = backbone.text_features(TEXTS)
    np.testing.assert_allclose(features, said, rtol=0, atol=1e-6)
    assert cut == [False, True, False]  # 10, 28 and 7 bytes, and an end; 24 tokens fit
    names = ["open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert [file.name for file in backbone.files()] == names


def test_embedded_model_gives_what_open_clip_gives() -> None:
    images = pictures((32, 96), (64, 64))
    backbone = OpenClipBackbone("x", "embedded")
    seen, said = expected_from_folder(SIGNS_CLIP, images)
    np.testing.assert_allclose(backbone.image_features(images), seen, rtol=0, atol=1e-5)
    np.testing.assert_allclose(backbone.text_features(TEXTS)[0], said, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (32, 20), (32, 32), (3, 5), (31, 64)])
def test_padded_input_fits_the_longest_side_and_is_black_around(size: tuple[int, int]) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    image = pictures(size)[0]
    # The published recipe with torchvision: a float tensor resized, padded with 0 (left and top get the smaller half),
    # then normalised.
    scale = 32 / max(size)
    height, width = round(size[0] * scale), round(size[1] * scale)
    fitted = tvf.resize(tvf.to_tensor(image.copy()), [height, width], tvf.InterpolationMode.BICUBIC, antialias=True)
    left, top = (32 - width) // 2, (32 - height) // 2
    padded = tvf.pad(fitted, [left, top, 32 - width - left, 32 - height - top], fill=0)
    expected = tvf.normalize(padded, mean, std)
    np.testing.assert_allclose(padded_input(image, 32, mean, std).numpy(), expected.numpy(), rtol=0, atol=1e-6)
    if left:
        assert padded_input(image, [32, 32], mean, std)[0, 0, 0].item() == pytest.approx((0 - 0.4) / 0.2)


def test_very_long_image_keeps_one_row(tmp_path: Path) -> None:
    # 4 · 32 / 4000 = 0.03 rows, of which at least one stays
    found = padded_input(np.full((4, 4000, 3), 255, np.uint8), 32, (0.0,) * 3, (1.0,) * 3)
    assert found.shape == (3, 32, 32)
    assert (found[0].sum(dim=1) > 0).sum().item() == 1


@pytest.mark.parametrize("upright", [False, True])
def test_very_long_strip_is_seen_by_its_middle_without_being_enlarged_whole(tmp_path: Path, upright: bool) -> None:
    strip = np.zeros((1, 200_000, 3), np.uint8)  # enlarged whole for 32 px it would be 32 · 32 · 200,000 · 4 bytes = 0.8 GB
    strip[:, 99_900:100_100] = pictures((1, 200))[0]
    middle = strip[:, 99_980:100_020]  # 40 px, of which the crop keeps 1
    if upright:
        strip, middle = strip.transpose(1, 0, 2), middle.transpose(1, 0, 2)
    backbone = OpenClipBackbone("x", *tiny(tmp_path))
    np.testing.assert_allclose(backbone.image_features([strip]), backbone.image_features([middle]), rtol=0, atol=1e-5)
    assert _middle(strip).shape == ((16, 1, 3) if upright else (1, 16, 3))


def test_padding_and_cropping_of_one_model_are_kept_apart(tmp_path: Path) -> None:
    config, weights = tiny(tmp_path)
    images = pictures((40, 100))
    cropped = OpenClipBackbone("x", config, weights)
    padded = OpenClipBackbone("y", config, weights, preprocessing="pad")
    assert cropped._open()[1] is padded._open()[1]
    assert np.abs(cropped.image_features(images) - padded.image_features(images)).max() > 1e-3


def test_features_are_unit_vectors_in_any_batch_size(tmp_path: Path) -> None:
    config, weights = tiny(tmp_path)
    images = pictures(*[(30 + i, 50 - i) for i in range(7)])
    found = []
    for batch_size in (1, 3, 100):
        forget_features()
        found.append(OpenClipBackbone("x", config, weights, batch_size=batch_size).image_features(images))
        np.testing.assert_allclose(np.linalg.norm(found[-1], axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(found[-1], found[0], rtol=0, atol=1e-6)
        assert found[-1].dtype == np.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_nearly_the_same(tmp_path: Path, dtype: str) -> None:
    config, weights = tiny(tmp_path)
    images = pictures((40, 40), (32, 60))
    full = OpenClipBackbone("x", config, weights)
    half = OpenClipBackbone("x", config, weights, placement=Placement(dtype=dtype))
    assert (half.image_features(images) * full.image_features(images)).sum(axis=1).min() > 0.999
    assert (half.text_features(TEXTS)[0] * full.text_features(TEXTS)[0]).sum(axis=1).min() > 0.999


def test_weights_with_module_prefix_and_openai_numbers_load(tmp_path: Path) -> None:
    config, tensors = write_tiny_clip(tmp_path)
    expected = OpenClipBackbone("x", *tiny(tmp_path)).image_features(pictures((32, 32)))
    numbers = {name: torch.tensor(77) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save({"module." + name: tensor for name, tensor in tensors.items()}, tmp_path / "ddp.pt")
    torch.save(tensors | numbers, tmp_path / "openai.pt")
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, tmp_path / "half.safetensors")
    for name, tolerance in (("ddp.pt", 0), ("openai.pt", 0), ("half.safetensors", 1e-3)):
        found = OpenClipBackbone("x", str(config), str(tmp_path / name)).image_features(pictures((32, 32)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_torchscript_program_is_refused_and_not_run(tmp_path: Path) -> None:
    config, _ = write_tiny_clip(tmp_path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-L-14.pt"))
    with pytest.raises(RewardUnavailableError, match=r'"x": .*ViT-L-14\.pt is a TorchScript program.* as the option backbone'):
        OpenClipBackbone("x", str(config), str(tmp_path / "ViT-L-14.pt"), option="backbone").load()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"visual.proj": None}, "visual.proj is missing"),
        ({"visual.proj": torch.zeros(32, 8)}, r"visual.proj is \[32, 8\] instead of \[32, 16\]"),
        ({"visual.extra": torch.zeros(1)}, "visual.extra is unknown"),
    ],
)
def test_checkpoint_that_does_not_fit_names_the_tensor(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RewardUnavailableError, match=reason):
        OpenClipBackbone("x", *tiny(tmp_path, **changes)).load()


@pytest.mark.parametrize("kept", [0, 1000, -100])
def test_truncated_checkpoint_is_named(tmp_path: Path, kept: int) -> None:
    config, weights = tiny(tmp_path)
    Path(weights).write_bytes(Path(weights).read_bytes()[:kept])
    with pytest.raises(RewardUnavailableError, match=r"w\.pt cannot be read .*download"):
        OpenClipBackbone("x", config, weights).load()


def test_model_that_cannot_be_had_is_one_sentence(tmp_path: Path) -> None:
    config, weights = tiny(tmp_path)
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "other.json").write_text('{"embed_dim": 3, "vision_cfg": {}}')
    wrong = TINY | {"vision_cfg": {"patches": 3}}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    cases = {
        ("ViT-B-33", weights): r'"ViT-B-33" is no model of open_clip \(nearest: ViT-B-32, ',
        ("ViT-B-32", None): "the model ViT-B-32 needs weights; give the path of a checkpoint or a tag",
        ("ViT-B-32", "opnai"): r"weights=opnai is no file here and no tag of open_clip for ViT-B-32 \(nearest: openai\)",
        ("ViT-B-32", "openai"): "trained with another activation; use the model ViT-B-32-quickgelu",
        (config, "none.pt"): "none.pt does not exist; download open_clip_model.safetensors from .* as the option weights=PATH",
        (config, str(tmp_path)): "is a folder and not a checkpoint; download",
        (str(tmp_path / "none.json"), weights): "none.json does not exist",
        (str(tmp_path / "damaged.json"), weights): "damaged.json cannot be read",
        (str(tmp_path / "other.json"), weights): "other.json has no text_cfg",
        (str(tmp_path / "wrong.json"), weights): "open_clip cannot make .*wrong.json .*patches",
        (str(tmp_path), None): "open_clip_config.json does not exist",
    }
    for (model, given), message in cases.items():
        with pytest.raises(RewardUnavailableError, match=message) as caught:
            OpenClipBackbone("x", model, given).load()
        assert str(caught.value).startswith('reward "x": ')
        assert "\n" not in str(caught.value)


def test_folder_without_weights_is_one_sentence(tmp_path: Path) -> None:
    write_model_folder(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    message = re.escape(str(tmp_path / "open_clip_model.safetensors")) + " does not exist; download"
    with pytest.raises(RewardUnavailableError, match=message):
        OpenClipBackbone("x", str(tmp_path)).load()


def test_tag_of_open_clip_is_taken_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    config, tensors = write_tiny_clip(tmp_path)
    snapshot = tmp_path / "models--somebody--tiny" / "snapshots" / "0a"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--somebody--tiny" / "refs").mkdir()
    (tmp_path / "models--somebody--tiny" / "refs" / "main").write_text("0a")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, snapshot / "open_clip_model.safetensors")
    tag = {"hf_hub": "somebody/tiny/", "mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-for-tests", json.loads(config.read_text()))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-for-tests", {"base": tag})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    image = pictures((32, 60))[0]
    squashed = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    model = open_clip.CLIP(**json.loads(config.read_text())).eval()
    model.load_state_dict(tensors)
    with torch.inference_mode():
        expected = model.encode_image(tvf.to_tensor(squashed.copy())[None] * 2 - 1, normalize=True)
    by_tag, by_repository = (OpenClipBackbone("x", "tiny-for-tests", given) for given in ("base", "somebody/tiny"))
    np.testing.assert_allclose(by_tag.image_features([image]), expected.numpy(), rtol=0, atol=1e-6)
    assert by_tag._open()[1] is by_repository._open()[1]  # the same file, so the same model
    with pytest.raises(RewardUnavailableError, match=r"somebody/else is neither a file here nor in the model hub's cache"):
        OpenClipBackbone("x", "tiny-for-tests", "somebody/else").load()


def test_bad_options_raise() -> None:
    for options, message in (
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"preprocessing": "pda"}, 'unknown preprocessing "pda"; nearest: pad'),
        ({"weights": "w.pt"}, "the embedded model has its own weights; weights=w.pt needs another model"),
    ):
        with pytest.raises(ValueError, match=message):
            OpenClipBackbone("x", "embedded", **options)  # type: ignore[arg-type]


def both_rewards(folder: Path) -> tuple[ClipReward, AestheticReward]:
    """Two rewards on one tiny model."""
    options = AestheticReward.write_tiny(folder)
    return ClipReward(model=options["architecture"], weights=options["backbone"]), AestheticReward(**options)


def test_two_rewards_on_one_model_run_the_vision_tower_once(tmp_path: Path) -> None:
    clip, aesthetic = both_rewards(tmp_path)
    images, prompts = pictures((40, 40), (50, 30), (32, 96)), [Prompt(text, text) for text in TEXTS]
    with counted(clip.backbone) as sizes:
        clip(images, prompts)
        aesthetic(images, prompts)
        assert sizes == [3]
        aesthetic([*images, *pictures((20, 20), seed=5)], [*prompts, prompts[0]])
        assert sizes == [3, 1]  # of another batch only the new image
        forget_features()
        aesthetic(images, prompts)
        assert sizes == [3, 1, 3]


def test_published_clip_and_aesthetic_are_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--timm--vit_large_patch14_clip_224.openai" / "snapshots" / "0a"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0a")
    (snapshot / "open_clip_model.safetensors").write_bytes(b"")  # 1.7 GB, which this test does not read
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    clip, aesthetic = ClipReward(model="ViT-L-14-quickgelu", weights="openai"), AestheticReward()
    found = [reward.backbone._found() for reward in (clip, aesthetic)]
    # Model, weights, tokenizer and preparation of images are what the shared model and its features go by.
    assert found[0].weights == found[1].weights == snapshot / "open_clip_model.safetensors"
    assert (found[0].model, found[0].tokenizer, found[0].preprocess) == (
        found[1].model,
        found[1].tokenizer,
        found[1].preprocess,
    )


def test_two_threads_that_ask_at_once_run_the_vision_tower_once(tmp_path: Path) -> None:
    clip, aesthetic = both_rewards(tmp_path)
    images, prompts = pictures((40, 40), (50, 30)), [Prompt("a", "a"), Prompt("b", "b")]
    expected = clip(images, prompts).scores, aesthetic(images, prompts).scores
    together = threading.Barrier(2)
    found: dict[str, np.ndarray] = {}

    def ask(reward: ClipReward | AestheticReward) -> None:
        together.wait(timeout=10)
        found[reward.name] = reward(images, prompts).scores

    with counted(clip.backbone, delay=0.2) as sizes:  # long enough for the other to ask meanwhile
        threads = [threading.Thread(target=ask, args=(reward,)) for reward in (clip, aesthetic)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert sizes == [2]
    np.testing.assert_array_equal(found["clip"], expected[0])
    np.testing.assert_array_equal(found["aesthetic"], expected[1])


def test_same_image_twice_in_a_batch_is_seen_once(tmp_path: Path) -> None:
    backbone = OpenClipBackbone("x", *tiny(tmp_path))
    image, other = pictures((40, 40), (40, 40))
    with counted(backbone) as sizes:
        features = backbone.image_features([image, other, image.copy()])
    assert sizes == [2]
    np.testing.assert_array_equal(features[0], features[2])
    assert (features[0] != features[1]).any()


def test_images_of_equal_bytes_and_other_shapes_are_kept_apart(tmp_path: Path) -> None:
    backbone = OpenClipBackbone("x", *tiny(tmp_path))
    image = pictures((40, 20))[0]
    wide, strided = image.reshape(20, 40, 3), np.asfortranarray(image)
    features = backbone.image_features([image, wide, strided])
    np.testing.assert_array_equal(features[0], features[2])
    assert np.abs(features[0] - features[1]).max() > 1e-4


def test_memory_keeps_the_latest_and_no_more() -> None:
    memory = FeatureMemory(limit=3)
    asked: list[list[int]] = []

    def double(keys: Sequence[int]) -> list[int]:
        def compute(positions: list[int]) -> list[int]:
            asked.append([keys[position] for position in positions])
            return [2 * key for key in asked[-1]]

        return memory.get(keys, compute)

    assert double([1, 2, 1]) == [2, 4, 2]
    assert double([3]) == [6]
    assert double([1, 4]) == [2, 8]  # 1 was used again, so 2 is the oldest and goes
    assert double([1, 3, 4, 2]) == [2, 6, 8, 4]
    assert double([5, 6, 7, 8, 9]) == [10, 12, 14, 16, 18]  # more than it keeps
    assert asked == [[1, 2], [3], [4], [2], [5, 6, 7, 8, 9]]


def test_failed_computation_is_not_remembered() -> None:
    memory = FeatureMemory()
    with pytest.raises(ZeroDivisionError):
        memory.get(["a"], lambda positions: [1 // 0])
    assert memory.get(["a"], lambda positions: [7]) == [7]


def test_returned_features_may_be_changed_by_the_caller(tmp_path: Path) -> None:
    backbone = OpenClipBackbone("x", *tiny(tmp_path))
    first = backbone.image_features(pictures((40, 40)))
    before = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(backbone.image_features(pictures((40, 40))), before)


def test_backbone_survives_pickling_after_use(tmp_path: Path) -> None:
    backbone = OpenClipBackbone("x", *tiny(tmp_path))
    expected = backbone.image_features(pictures((40, 40)))
    twin = pickle.loads(pickle.dumps(backbone))
    assert twin == backbone
    np.testing.assert_array_equal(twin.image_features(pictures((40, 40))), expected)
    assert len(pickle.dumps(backbone)) < 2000  # options, no weights
