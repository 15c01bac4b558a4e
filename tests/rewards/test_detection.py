"""Detectors of four families, tiny and random, against their raw outputs decoded by hand; batches, unknown classes, NaN."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import xomni_rl  # noqa: F401 - before torchvision, whose operators it declares
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.detection import Detector, write_tiny_detector
from xomni_rl.rewards.models import Placement
from xomni_rl.rewards.rule_checks import Box

CLASSES = ("dog", "cat", "bench")


@pytest.fixture(scope="module")
def rt_detr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rt_detr")
    write_tiny_detector(folder, CLASSES)
    return folder


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed-set detector with a softmax over the classes and "nothing"."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    labels = dict(enumerate(("tvmonitor", "mouse", "dog")))
    config = YolosConfig(**sizes, image_size=[64, 64], patch_size=16, num_detection_tokens=12, id2label=labels)
    folder = tmp_path_factory.mktemp("yolos")
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OWLv2, zero-shot."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    from xomni_rl.rewards.pickscore import PickScoreReward

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("owl")
    PickScoreReward.write_tiny(folder / "clip")  # for its byte-level tokenizer
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip")
    tokenizer.model_max_length = 24
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = Owlv2Config(
        text_config=sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 24},
        vision_config=sizes | {"image_size": 64, "patch_size": 16},
        projection_dim=32,  # OWLv2 compares the projected text with vectors as wide as its text tower
    )
    Owlv2ForObjectDetection(config).save_pretrained(folder / "owl")
    image_processor = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    Owlv2Processor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder / "owl")
    return folder / "owl"


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grounding DINO, zero-shot, with a tiny Swin and a tiny BERT."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("dino")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "dog", "cat", "bench"]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    swin = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4, out_indices=[2, 3, 4])
    bert = BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=bert,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=15,
        max_text_len=16,
        disable_custom_kernels=True,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 256})
    GroundingDinoProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (height, width, 3)).astype(np.uint8) for height, width in ((50, 70), (96, 96), (50, 70))]


def as_rows(boxes: Sequence[Box]) -> np.ndarray:
    """[N, 5], the best first."""
    rows = [(box.score, box.left, box.top, box.right, box.bottom) for box in boxes]
    return np.array(sorted(rows, reverse=True)).reshape(-1, 5)


def decoded(boxes: torch.Tensor, scores: torch.Tensor, width: float, height: float, threshold: float) -> np.ndarray:
    """Relative (centre x, centre y, width, height) [Q, 4] and scores [Q] as `as_rows` gives them."""
    x, y, w, h = boxes.unbind(-1)
    corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
    rows = torch.stack([scores, *corners], -1)[scores > threshold]
    return np.array(sorted(rows.tolist(), reverse=True)).reshape(-1, 5)


def test_closed_set_boxes_equal_the_raw_outputs_of_rt_detr(rt_detr: Path) -> None:
    from transformers import RTDetrImageProcessor, RTDetrV2ForObjectDetection

    model = RTDetrV2ForObjectDetection.from_pretrained(rt_detr).eval()
    processor = RTDetrImageProcessor.from_pretrained(rt_detr)
    found = Detector("test", str(rt_detr)).detect(pictures(), [CLASSES] * 3, threshold=0.1)
    count = 0
    for image, objects in zip(pictures(), found.objects, strict=True):
        with torch.no_grad():
            out = model(**processor(images=[Image.fromarray(image)], return_tensors="pt"))
        chances = out.logits[0].sigmoid()  # [Q, 3]: a query may be of several classes; the best Q of all Q * 3 count
        chances = torch.where(chances >= chances.flatten().topk(len(chances)).values.min(), chances, 0)
        for label, name in enumerate(CLASSES):
            height, width = image.shape[:2]
            expected = decoded(out.pred_boxes[0], chances[:, label], width, height, 0.1)
            np.testing.assert_allclose(as_rows(objects[name]), expected, rtol=0, atol=1e-3)  # px
            count += len(expected)
    assert count > 5


def test_closed_set_boxes_equal_the_raw_outputs_of_yolos(yolos: Path) -> None:
    from transformers import YolosForObjectDetection, YolosImageProcessor

    model = YolosForObjectDetection.from_pretrained(yolos).eval()
    processor = YolosImageProcessor.from_pretrained(yolos)
    # GenEval's names; the model's own are tvmonitor and mouse.
    names = ("tv", "computer mouse", "dog")
    found = Detector("test", str(yolos)).detect(pictures(), [names] * 3, threshold=0.2)
    count = 0
    for image, objects in zip(pictures(), found.objects, strict=True):
        with torch.no_grad():
            out = model(**processor(images=[Image.fromarray(image)], return_tensors="pt"))
        best, labels = out.logits[0].softmax(-1)[:, :-1].max(-1)  # the last class is "nothing"
        for label, name in enumerate(names):
            chances = torch.where(labels == label, best, 0)
            expected = decoded(out.pred_boxes[0], chances, image.shape[1], image.shape[0], 0.2)
            np.testing.assert_allclose(as_rows(objects[name]), expected, rtol=0, atol=1e-3)
            count += len(expected)
    assert count > 5


def test_zero_shot_boxes_equal_the_raw_outputs_of_owlv2(owl: Path) -> None:
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    model, processor = Owlv2ForObjectDetection.from_pretrained(owl).eval(), Owlv2Processor.from_pretrained(owl)
    found = Detector("test", str(owl)).detect(pictures(), [("dog", "cat")] * 3, threshold=0.3)
    count = 0
    for image, objects in zip(pictures(), found.objects, strict=True):
        for name in ("dog", "cat"):
            inputs = processor(text=[[f"a photo of a {name}"]], images=[Image.fromarray(image)], return_tensors="pt")
            with torch.no_grad():
                out = model(**inputs)
            side = max(image.shape)  # the picture is padded to a square, at the right and below
            expected = decoded(out.pred_boxes[0], out.logits[0, :, 0].sigmoid(), side, side, 0.3)
            np.testing.assert_allclose(as_rows(objects[name]), expected, rtol=0, atol=1e-3)
            count += len(expected)
    assert count > 5


def test_zero_shot_boxes_equal_the_raw_outputs_of_grounding_dino(dino: Path) -> None:
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

    model = GroundingDinoForObjectDetection.from_pretrained(dino).eval()
    processor = GroundingDinoProcessor.from_pretrained(dino)
    found = Detector("test", str(dino)).detect(pictures(), [("dog", "bench")] * 3, threshold=0.2)
    count = 0
    for image, objects in zip(pictures(), found.objects, strict=True):
        for name in ("dog", "bench"):
            inputs = processor(text=f"{name}.", images=Image.fromarray(image), return_tensors="pt")
            with torch.no_grad():
                out = model(**inputs)
            chances = out.logits[0].sigmoid().max(-1).values
            expected = decoded(out.pred_boxes[0], chances, image.shape[1], image.shape[0], 0.2)
            np.testing.assert_allclose(as_rows(objects[name]), expected, rtol=0, atol=1e-2)
            count += len(expected)
    assert count > 5


@pytest.mark.parametrize("family", ["rt_detr", "yolos", "owl", "dino"])
def test_batch_finds_what_singles_find(family: str, request: pytest.FixtureRequest) -> None:
    detector = Detector("test", str(request.getfixturevalue(family)), batch_size=2)
    images = pictures() * 2  # two sizes, six images, passes of two
    together = detector.detect(images, [["dog"]] * 6, threshold=0.05).objects
    for image, objects in zip(images, together, strict=True):
        alone = detector.detect([image], [["dog"]], threshold=0.05).objects[0]
        np.testing.assert_allclose(as_rows(objects["dog"]), as_rows(alone["dog"]), rtol=0, atol=1e-2)


@pytest.mark.parametrize("family", ["rt_detr", "yolos", "owl", "dino"])
def test_bfloat16_finds_about_as_many(family: str, request: pytest.FixtureRequest) -> None:
    folder, names = str(request.getfixturevalue(family)), ["tv"] if family == "yolos" else ["dog"]
    exact = Detector("test", folder).detect(pictures(), [names] * 3, threshold=0.05).objects
    rough = Detector("test", folder, Placement(dtype="bfloat16")).detect(pictures(), [names] * 3, threshold=0.05).objects
    counts = [sum(len(boxes) for found in objects for boxes in found.values()) for objects in (exact, rough)]
    assert min(counts) > 0
    assert abs(counts[0] - counts[1]) <= max(2, 0.2 * counts[0])


def test_only_the_classes_that_were_asked_are_given(rt_detr: Path) -> None:
    found = Detector("test", str(rt_detr)).detect(pictures(), [["dog"], [], ["cat", "bench"]], threshold=0.05)
    assert [sorted(objects) for objects in found.objects] == [["dog"], [], ["bench", "cat"]]


def test_no_images_find_nothing(rt_detr: Path) -> None:
    assert Detector("test", str(rt_detr)).detect([], [], threshold=0.5).objects == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1)])
@pytest.mark.parametrize("family", ["rt_detr", "owl"])
def test_freak_sizes_are_searched(family: str, shape: tuple[int, int], request: pytest.FixtureRequest) -> None:
    detector = Detector("test", str(request.getfixturevalue(family)))
    found = detector.detect([np.zeros((*shape, 3), np.uint8)], [["dog"]], threshold=0.0)
    assert not found.failures


@pytest.mark.parametrize(("family", "names"), [("yolos", ["tv", "mouse", "dog"]), ("dino", ["dog"])])
def test_strip_that_a_processor_makes_nothing_of_is_a_failure_of_its_image_alone(
    family: str, names: list[str], request: pytest.FixtureRequest
) -> None:
    # 1 × 900 px with the longest side at 96 or 256 px: the other one would be 0 px.
    detector = Detector("test", str(request.getfixturevalue(family)))
    found = detector.detect([pictures()[0], np.zeros((1, 900, 3), np.uint8)], [names] * 2, threshold=0.05)
    assert list(found.failures) == [1]
    assert found.failures[1].startswith("the detector cannot take an image of 900×1 px")
    assert any(found.objects[0].values())


def test_unknown_class_is_a_failure_of_its_image_alone(rt_detr: Path) -> None:
    found = Detector("test", str(rt_detr)).detect(pictures(), [["dog"], ["unicorn", "cat"], ["cat"]], threshold=0.1)
    assert list(found.failures) == [1]
    assert found.failures[1].startswith('unknown class of this detector "unicorn"; known: bench, cat, dog')
    assert "zero-shot" in found.failures[1]


def test_nan_is_a_failure_of_its_image_alone(rt_detr: Path, tmp_path: Path) -> None:
    # A NaN in the bias of every class score reaches all images; only those of the pass fail, and none gets boxes.
    shutil.copytree(rt_detr, tmp_path / "nan")
    tensors = load_file(rt_detr / "model.safetensors")
    poisoned = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in poisoned:
        if "class_embed" in name and name.endswith("bias"):
            poisoned[name][:] = torch.nan
    save_file(poisoned, tmp_path / "nan" / "model.safetensors", {"format": "pt"})
    found = Detector("test", str(tmp_path / "nan")).detect(pictures(), [["dog"], [], ["cat"]], threshold=0.1)
    assert found.failures == dict.fromkeys(range(3), "the detector returned NaN")
    assert all(not boxes for objects in found.objects for boxes in objects.values())


def test_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardUnavailableError, match=r"is not the folder of a detector .*rtdetr_v2_r101vd.*weights=PATH"):
        Detector("test", str(tmp_path)).load()


def test_folder_of_a_model_that_detects_nothing_is_refused(tmp_path: Path) -> None:
    from xomni_rl.rewards.pickscore import PickScoreReward

    options: dict[str, Any] = PickScoreReward.write_tiny(tmp_path)
    with pytest.raises(RewardUnavailableError, match="download RT-DETR v2"):
        Detector("test", options["weights"]).load()


def test_missing_tensor_is_refused(rt_detr: Path, tmp_path: Path) -> None:
    shutil.copytree(rt_detr, tmp_path / "cut")
    tensors = load_file(rt_detr / "model.safetensors")
    name = next(name for name in tensors if "enc_score_head.weight" in name)
    save_file(
        {key: tensor for key, tensor in tensors.items() if key != name},
        tmp_path / "cut" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(RewardUnavailableError, match=r"the tensor .*enc_score_head\.weight is missing"):
        Detector("test", str(tmp_path / "cut")).load()


def test_missing_weights_name_download_place_and_licence() -> None:
    with pytest.raises(RewardUnavailableError, match=r'reward "test".*PekingU/rtdetr_v2_r101vd.*licence: Apache-2\.0'):
        Detector("test", "/nowhere/detector").load()


def test_files_are_weights_and_configurations(rt_detr: Path) -> None:
    names = [path.name for path in Detector("test", str(rt_detr)).files()]
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]
