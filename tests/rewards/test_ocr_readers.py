"""The readers of the ocr reward: each against the package it stands for, what they need, and what goes wrong."""

import copy
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fastapi.responses import JSONResponse, Response
from PIL import Image, ImageDraw, ImageFont

from tests.rewards.judge_server import MODEL, JudgeServer
from xomni_rl.prompt_sets.signs import render_sign, signs
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardError, RewardUnavailableError, build_reward
from xomni_rl.rewards.models import forget_models
from xomni_rl.rewards.ocr_engine import second_model, wheel_model
from xomni_rl.rewards.ocr_readers import ENGINES, Line
from xomni_rl.rewards.reader_got import END, GotReader, write_tiny_got
from xomni_rl.rewards.reader_vlm import INSTRUCTION, NO_TEXT, answer_lines
from xomni_rl.rewards.vlm_tiny import write_tiny_vlm

PROMPTS = signs(split="heldout", count=12)


def sign_images() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [render_sign(prompt.texts[0], prompt.checks[0]["colour"], rng) for prompt in PROMPTS]


def page(*lines: str) -> np.ndarray:
    """Black lines on white, one under the other: uint8 [200, 400, 3]."""
    image = Image.new("RGB", (400, 200), "white")
    for index, line in enumerate(lines):
        ImageDraw.Draw(image).text((20, 20 + index * 60), line, font=ImageFont.load_default(36), fill="black")
    return np.asarray(image)


def bgr(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "ppocr4"}, 'unknown engine "ppocr4"; nearest: ppocrv4'),
        ({"engine": "ppocrv4", "model_path": "x.onnx"}, "model_path is for engine rapidocr"),
        ({"engine_options": {"device": "cpu"}}, 'engine rapidocr has no options of its own, got "device"'),
        ({"engine": "paddleocr", "workers": 2}, "workers is for the engines rapidocr and ppocrv4, not for paddleocr"),
        ({"engine": "paddleocr", "engine_options": {"layout": "line"}}, 'unknown option of engine paddleocr "layout"'),
        ({"engine": "got_ocr2", "engine_options": {"batchsize": 2}}, '"batchsize"; nearest: batch_size'),
        ({"engine": "got_ocr2", "engine_options": {"batch_size": 0}}, "batch_size must be a whole number of at least 1, got 0"),
        ({"engine": "got_ocr2", "engine_options": {"dtype": "float8"}}, 'unknown dtype "float8"'),
        ({"engine": "vlm", "engine_options": {"backend": "lokal"}}, 'unknown vlm backend "lokal"; nearest: local'),
        ({"engine": "vlm", "engine_options": {"max_new_tokens": 0}}, "max_new_tokens must be a whole number of at least 1"),
    ],
)
def test_option_that_the_engine_does_not_have_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_reward("ocr", **options)


@pytest.mark.parametrize("engine", ENGINES)
def test_making_the_reward_loads_nothing_heavy(engine: str) -> None:
    code = (
        "import sys\nfrom xomni_rl.rewards.ocr import OcrReward\n"
        f"OcrReward(engine={engine!r})\n"
        "print([name for name in ('torch', 'transformers', 'onnxruntime', 'paddleocr', 'cv2') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# The second reader


def test_second_reader_reads_as_rapidocr_does_with_the_same_file() -> None:
    from rapidocr import RapidOCR

    images = sign_images()
    peer = RapidOCR(params={"Global.log_level": "critical", "Rec.model_path": str(second_model())})
    expected = [peer(bgr(image), use_det=False, use_cls=False, use_rec=True).txts[0].strip() for image in images]
    result = build_reward("ocr", engine="ppocrv4", layout="line")(images, PROMPTS)
    assert [detail["read"].strip() for detail in result.details] == expected
    assert result.metrics["exact"].mean() > 0.8


def test_second_reader_is_another_one() -> None:
    # Blurred beyond what a person reads: two readers guess differently, the same reader twice would not.
    rng = np.random.default_rng(1)
    images = [np.clip(image + rng.normal(0, 90, image.shape), 0, 255).astype(np.uint8) for image in sign_images()]
    read = [
        [detail["read"] for detail in build_reward("ocr", engine=engine, layout="line")(images, PROMPTS).details]
        for engine in ("rapidocr", "ppocrv4")
    ]
    assert read[0] != read[1]


def test_files_of_the_second_reader_match_its_card() -> None:
    import hashlib

    (file,) = build_reward("ocr", engine="ppocrv4", layout="line").files()
    assert file == second_model()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in (file.parent / "README.md").read_text()


# PaddleOCR


@pytest.fixture(scope="module")
def paddle() -> Any:
    return pytest.importorskip("paddleocr", reason='needs the extra: pip install "xomni-rl[paddle]"')


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from xomni_rl.rewards import reader_paddle

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reader_paddle, "_wheel_folder", reader_paddle._wheel_folder.__wrapped__)  # not as remembered
    return tmp_path / "cache"


def written_folder(folder: Path, model: Path, name: str, **settings: Any) -> str:
    """A PaddleOCR model folder, by PaddleOCR's documentation."""
    folder.mkdir()
    (folder / "inference.onnx").symlink_to(model)
    (folder / "inference.yml").write_text(json.dumps({"Global": {"model_name": name}, **settings}))  # JSON is YAML
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Detection and recognition of the rapidocr wheel as PaddleOCR's model folders, not made by our code."""
    import onnxruntime

    alphabet = onnxruntime.InferenceSession(str(wheel_model())).get_modelmeta().custom_metadata_map["character"]
    recognition = written_folder(
        tmp_path / "rec",
        wheel_model(),
        "PP-OCRv6_small_rec",
        PreProcess={"transform_ops": [{"RecResizeImg": {"image_shape": [3, 48, 320]}}]},
        PostProcess={"name": "CTCLabelDecode", "character_dict": alphabet.rstrip("\n").split("\n")},
    )
    normalise = {"scale": "1./255.", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "order": "hwc"}
    detection = written_folder(
        tmp_path / "det",
        wheel_model("det"),
        "PP-OCRv6_small_det",
        PreProcess={
            "transform_ops": [{"DetResizeForTest": {"resize_long": 960}}, {"NormalizeImage": normalise}, {"ToCHWImage": None}]
        },
        PostProcess={"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "max_candidates": 1000, "unclip_ratio": 1.5},
    )
    return {"rec": recognition, "det": detection}


def test_paddleocr_reads_lines_as_its_own_call_does_image_by_image(paddle: Any, folders: dict[str, str]) -> None:
    images = [*sign_images(), page("HELLO")[10:80], np.full((32, 600, 3), 90, np.uint8)]  # three sizes in one batch
    peer = paddle.TextRecognition(model_name="PP-OCRv6_small_rec", model_dir=folders["rec"], engine="onnxruntime", device="cpu")
    expected = [peer.predict(bgr(image))[0] for image in images]
    prompts = [*PROMPTS, Prompt("p", '"HELLO"'), Prompt("q", '"HELLO"')]
    result = build_reward("ocr", engine="paddleocr", layout="line")(images, prompts)
    assert [detail["read"] for detail in result.details] == [line["rec_text"] for line in expected]
    confidences = [detail.get("confidence", 0.0) for detail in result.details]
    np.testing.assert_allclose(confidences, [line["rec_score"] for line in expected], atol=1e-4)  # details are rounded to 1e-4
    assert result.scores[-2] == 1
    assert result.scores[-1] == 0


def test_paddleocr_finds_lines_as_its_own_pipeline_does(paddle: Any, folders: dict[str, str]) -> None:
    images = [page("HELLO", "WORLD"), page(), sign_images()[0], page("RATHER LONG LINES", "OF", "TEXT")]
    peer = paddle.PaddleOCR(
        text_detection_model_name="PP-OCRv6_small_det",
        text_detection_model_dir=folders["det"],
        text_recognition_model_name="PP-OCRv6_small_rec",
        text_recognition_model_dir=folders["rec"],
        use_doc_orientation_classify=False,
        use_doc_unwarping=False,
        use_textline_orientation=False,
        text_recognition_batch_size=1,
        engine="onnxruntime",
        device="cpu",
    )
    expected = [" ".join(peer.predict(bgr(image))[0]["rec_texts"]) for image in images]
    prompts = [Prompt("p", '"HELLO" over "WORLD"')] * len(images)
    result = build_reward("ocr", engine="paddleocr", min_confidence=0.0)(images, prompts)
    assert [detail["read"] for detail in result.details] == expected
    assert result.scores[:2].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("layout", ["line", "auto"])
def test_paddleocr_takes_freak_sizes_and_batch_equals_singles(paddle: Any, layout: str) -> None:
    images = [np.zeros((1, 1, 3), np.uint8), np.zeros((1, 500, 3), np.uint8), *sign_images()[:3], page("HELLO")]
    reward = build_reward("ocr", engine="paddleocr", layout=layout)
    together = reward(images, [PROMPTS[0]] * len(images)).scores
    singles = [reward([image], [PROMPTS[0]]).scores[0] for image in images]
    np.testing.assert_allclose(together, singles, atol=1e-6)


def test_paddleocr_folders_are_made_once_and_completely(paddle: Any, own_cache: Path) -> None:
    reward = build_reward("ocr", engine="paddleocr")
    files = reward.files()
    assert [(file.name, file.parent.name.rpartition("-")[0]) for file in files] == [
        ("inference.onnx", "PP-OCRv6_small_rec"),
        ("inference.yml", "PP-OCRv6_small_rec"),
        ("inference.onnx", "PP-OCRv6_small_det"),
        ("inference.yml", "PP-OCRv6_small_det"),
    ]
    assert files[0].read_bytes() == wheel_model().read_bytes()
    assert len(list((own_cache / "xomni_rl" / "paddleocr").iterdir())) == 2  # nothing half-written is left
    before = files[0].stat().st_mtime_ns
    assert build_reward("ocr", engine="paddleocr").files() == files
    assert files[0].stat().st_mtime_ns == before


def test_alphabet_survives_the_way_through_yaml(paddle: Any, own_cache: Path) -> None:
    import onnxruntime

    alphabet = onnxruntime.InferenceSession(str(wheel_model())).get_modelmeta().custom_metadata_map["character"]
    written = yaml.safe_load(build_reward("ocr", engine="paddleocr", layout="line").files()[1].read_text(encoding="utf-8"))
    assert written["PostProcess"]["character_dict"] == alphabet.rstrip("\n").split("\n")


def test_cache_that_cannot_be_written_says_so(paddle: Any, own_cache: Path) -> None:
    own_cache.write_text("a file where a folder should be")
    with pytest.raises(RewardUnavailableError, match=r"cannot be written .* set XDG_CACHE_HOME to a folder that can"):
        build_reward("ocr", engine="paddleocr").load()


@pytest.mark.parametrize("missing", ["inference.onnx", "inference.yml"])
def test_paddleocr_folder_without_a_model_is_refused_at_once(paddle: Any, tmp_path: Path, missing: str) -> None:
    for name in {"inference.onnx", "inference.yml"} - {missing}:
        (tmp_path / name).write_text("x")
    reward = build_reward("ocr", engine="paddleocr", layout="line", engine_options={"recognition_dir": str(tmp_path)})
    start = time.perf_counter()
    with pytest.raises(
        RewardUnavailableError, match=rf"there is no file .*{missing}; give .* as engine_options.recognition_dir"
    ):
        reward.load()
    assert time.perf_counter() - start < 2  # PaddleOCR would look for a download for 22 s


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Global: [", "names no Global.model_name"),
        ("Global: {}", "names no Global.model_name"),
        ("Global: {model_name: PP-OCRv9_rec}", "PaddleOCR cannot use .* give folders of ONNX models"),
        ("Global: {model_name: PP-OCRv6_small_rec}", "PaddleOCR cannot use .* give folders of ONNX models"),
    ],
)
def test_damaged_paddleocr_folder_makes_the_reward_unavailable(paddle: Any, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "inference.onnx").write_bytes(wheel_model().read_bytes()[:1000])
    (tmp_path / "inference.yml").write_text(content)
    with pytest.raises(RewardUnavailableError, match=message):
        build_reward("ocr", engine="paddleocr", layout="line", engine_options={"recognition_dir": str(tmp_path)}).load()


# GOT-OCR 2.0


@pytest.fixture(scope="module")
def tiny_got(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_tiny_got(tmp_path_factory.mktemp("got"))


def read_by_transformers(folder: str, images: Sequence[np.ndarray]) -> list[str]:
    """One plain call per image, as the model's page on the hub shows it."""
    from transformers import AutoProcessor, GotOcr2ForConditionalGeneration

    processor, model = AutoProcessor.from_pretrained(folder), GotOcr2ForConditionalGeneration.from_pretrained(folder)
    texts = []
    for image in images:
        # 128 px are 8×8 patches of 16 px, and two strides of 2 make 2×2 tokens of them (published: 1024 px, 16×16).
        inputs = processor(Image.fromarray(image), num_image_tokens=4, return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, tokenizer=processor.tokenizer, stop_strings=END, max_new_tokens=12)
        texts.append(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def test_got_batch_reads_as_transformers_does_image_by_image(tiny_got: dict[str, Any]) -> None:
    images = [
        render_sign(text, colour) for text in ("K7AX", "B2CD", "QQ", "WXYZ") for colour in ("red", "blue", "black", "green")
    ]
    images.append(page("HELLO", "WORLD"))
    expected = read_by_transformers(tiny_got["weights"], images)
    assert len(set(expected)) > 5  # the images matter,
    assert len({len(text) for text in expected}) > 1  # and some readings end before the others of their batch
    pages, failures = GotReader(**tiny_got, batch_size=5).read(images)
    assert not failures
    wanted = [[Line(line.strip()) for line in text.split("\n") if line.strip()] for text in expected]
    assert pages == wanted


def test_got_reward_scores_without_confidence(tiny_got: dict[str, Any]) -> None:
    image = render_sign("K7AX", "red")
    (text,) = read_by_transformers(tiny_got["weights"], [image])
    reward = build_reward("ocr", engine="got_ocr2", engine_options=tiny_got, unicode="none")
    result = reward([image], [Prompt("p", "a sign", texts=(text,))])
    assert result.scores.tolist() == [1.0]
    assert "confidence" not in result.details[0]  # it states none
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in reward.files()}
    for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):  # after scoring
        assert twin([image], [Prompt("p", "a sign", texts=(text,))]).scores.tolist() == [1.0]


def test_got_without_images_loads_nothing(tmp_path: Path) -> None:
    reward = build_reward("ocr", engine="got_ocr2", engine_options={"weights": str(tmp_path / "none")})
    assert reward([], []).scores.shape == (0,)


def test_got_weights_that_are_missing_say_what_to_download(tmp_path: Path) -> None:
    reward = build_reward("ocr", engine="got_ocr2", engine_options={"weights": str(tmp_path / "none")})
    message = r'^reward "ocr": .*none does not exist; download .*GOT-OCR-2.0-hf .*Apache-2.0.* engine_options\.weights=PATH$'
    for use in (reward.load, reward.files):
        with pytest.raises(RewardUnavailableError, match=message):
            use()


def test_got_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(RewardUnavailableError, match=r"cannot be used as GOT-OCR 2.0"):
        build_reward("ocr", engine="got_ocr2", engine_options={"weights": str(tmp_path)}).load()


def test_got_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    options = write_tiny_got(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lacking = {name: tensor for name, tensor in tensors.items() if "conv_upsampler1" not in name}
    assert len(lacking) == len(tensors) - 1
    save_file(lacking, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardUnavailableError, match=r"its weights lack .*conv_upsampler1"):
        build_reward("ocr", engine="got_ocr2", engine_options=options).load()


def test_not_finite_got_output_is_a_failure_and_no_text(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    options = write_tiny_got(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["language_model.model.norm.weight"].fill_(torch.nan)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match="not finite") as caught:
        build_reward("ocr", engine="got_ocr2", engine_options=options)([page("A"), page("B")], [Prompt("p", '"A"')] * 2)
    assert list(caught.value.failures) == [0, 1]
    forget_models()


# Vision-language models


@pytest.fixture(scope="module")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    forms = (("HELLO", "WORLD", "K7AX"), (" a\n", " b\n"), ("end", "fin"))
    return {"weights": str(write_tiny_vlm(tmp_path_factory.mktemp("vlm"), forms)), "device": "cpu"}


def test_vlm_reads_what_the_model_answers_to_the_instruction(tiny_vlm: dict[str, Any]) -> None:
    from xomni_rl.rewards.vlm import build_vlm

    images = sign_images()
    question = INSTRUCTION.read_text(encoding="utf-8").strip()
    answers = [build_vlm("test", tiny_vlm).generate([image], [question])[0] for image in images]
    assert len(set(answers)) > 1
    assert all("\n" in answer for answer in answers)
    result = build_reward("ocr", engine="vlm", engine_options=tiny_vlm)(images, PROMPTS)
    assert [detail["read"] for detail in result.details] == [" ".join(answer.split()) for answer in answers]
    own = [Prompt("p", "x", texts=tuple(line.strip() for line in answer.split("\n"))) for answer in answers]
    assert build_reward("ocr", engine="vlm", engine_options=tiny_vlm)(images, own).scores.tolist() == [1.0] * len(images)


def test_vlm_answer_is_cut_at_its_limit(tiny_vlm: dict[str, Any]) -> None:
    options = {**tiny_vlm, "max_new_tokens": 1}
    result = build_reward("ocr", engine="vlm", engine_options=options)(sign_images()[:2], PROMPTS[:2])
    assert {detail["read"] for detail in result.details} <= {"HELLO", "WORLD", "K7AX"}


def test_files_of_the_vlm_reader_hold_its_instruction(tiny_vlm: dict[str, Any]) -> None:
    files = build_reward("ocr", engine="vlm", engine_options=tiny_vlm).files()
    assert files[0] == INSTRUCTION
    assert "config.json" in {path.name for path in files}
    assert NO_TEXT in INSTRUCTION.read_text(encoding="utf-8")


def test_missing_vlm_makes_the_reward_unavailable(tmp_path: Path) -> None:
    options = {"weights": str(tmp_path / "none")}
    with pytest.raises(RewardUnavailableError, match=r'^reward "ocr": .*none does not exist; download'):
        build_reward("ocr", engine="vlm", engine_options=options)([page("A")], [Prompt("p", '"A"')])


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ("HELLO\n\n  WORLD ", ["HELLO", "WORLD"]),
        ("<no text>", []),
        ("<No text>.", []),
        ("", []),
        ("no text", ["no text"]),  # a picture may say so
    ],
)
def test_vlm_answer_becomes_lines(answer: str, texts: list[str]) -> None:
    assert answer_lines(answer) == [Line(text) for text in texts]


def test_empty_vlm_answer_is_a_failure_and_no_text_is_a_score(tmp_path: Path) -> None:
    answers = iter(["", NO_TEXT, "K7AX"])  # one connection: in the order of the images

    async def scripted(_number: int, _body: Mapping[str, Any]) -> Response:
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": next(answers)}}]})

    with JudgeServer(write_tiny_vlm(tmp_path)) as server:
        server.fault = scripted
        options = {"backend": "server", "url": server.url, "model": MODEL, "concurrency": 1}
        asked = [Prompt(str(index), "a sign", texts=("K7AX",)) for index in range(3)]
        with pytest.raises(RewardError, match="answered nothing, not even <no text>") as caught:
            build_reward("ocr", engine="vlm", engine_options=options)(sign_images()[:3], asked)
    assert list(caught.value.failures) == [0]
    assert caught.value.partial is not None
    np.testing.assert_array_equal(caught.value.partial.scores, [np.nan, 0, 1])
    assert all("confidence" not in detail for detail in caught.value.partial.details)  # the reader states none


def test_image_that_the_vlm_refuses_fails_alone(tiny_vlm: dict[str, Any]) -> None:
    strip = np.zeros((1, 500, 3), np.uint8)  # Qwen's processor takes no image 200 times as wide as it is high
    with pytest.raises(RewardError, match="processor refuses it") as caught:
        build_reward("ocr", engine="vlm", engine_options=tiny_vlm)([strip, sign_images()[0]], PROMPTS[:2])
    assert list(caught.value.failures) == [0]
    assert caught.value.partial is not None
    assert caught.value.partial.details[1]["read"]
    assert np.isnan(caught.value.partial.scores).tolist() == [True, False]
