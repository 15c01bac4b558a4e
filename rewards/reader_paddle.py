"""PaddleOCR's own pipeline as a reader, from model folders on this machine: it never looks for a download.

PaddleOCR itself needs no PaddlePaddle: it runs ONNX models by onnxruntime. Without a model folder it tries four download
sources for 22 s and raises a bare `Exception`, so folders are checked before PaddleOCR sees them. By default the folders are
made of the models inside the rapidocr wheel: the reader is then PP-OCRv6 with PaddleOCR's preparation of images, not ours.
Lines are read one width at a time, because PaddleOCR pads a batch to its widest line and the padding changes what is read.

Needs the extra `paddle`: `pip install "xomni-rl[paddle]"`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.ocr_readers import Line, Pages

BATCH = 8
"""Lines of one size per call."""
_NAMES = {"rec": "PP-OCRv6_small_rec", "det": "PP-OCRv6_small_det"}
"""What PaddleOCR calls the models of the rapidocr wheel."""
_OPTIONS = {"rec": "recognition_dir", "det": "detection_dir"}

_lock = threading.Lock()  # PaddleOCR's predictors are not made for several threads


@dataclass(frozen=True)
class PaddleReader:
    """Reads by PaddleOCR.

    Args:
        recognition_dir: model folder with `inference.onnx` and `inference.yml`; None = made of the rapidocr wheel's model.
        detection_dir: the same for detection; not used if every image is one line.
        device: in PaddleOCR's words: cpu, gpu, gpu:1 (needs onnxruntime-gpu).
        layout: "line" = every image is one line; "auto" = find the lines first.
    """

    recognition_dir: str | None = None
    detection_dir: str | None = None
    device: str = "cpu"
    layout: str = "auto"

    def read(self, images: Sequence[np.ndarray]) -> Pages:
        """Lines of N uint8 [H, W, 3] images, and index → reason for failed ones; see `Reader`."""
        model = self._model()
        pages: list[list[Line]] = [[] for _ in images]
        failures: dict[int, str] = {}
        for batch in _batches(images, BATCH if self.layout == "line" else 1):
            answers = self._answers(model, [np.ascontiguousarray(images[index][..., ::-1]) for index in batch])
            for index, answer in zip(batch, answers, strict=True):
                if isinstance(answer, str):
                    failures[index] = answer
                else:
                    pages[index] = answer
        return pages, failures

    def load(self) -> None:
        """Loads the models; see `Reader`."""
        self._model()

    def files(self) -> tuple[Path, ...]:
        """Model and configuration of each folder in use; see `Reader`."""
        return tuple(folder / name for folder in self._folders().values() for name in ("inference.onnx", "inference.yml"))

    def _folders(self) -> dict[str, Path]:
        given = {"rec": self.recognition_dir} | ({"det": self.detection_dir} if self.layout == "auto" else {})
        return {task: _wheel_folder(task) if folder is None else Path(folder) for task, folder in given.items()}

    def _model(self) -> Any:
        folders = self._folders()
        with _lock:
            return _load(folders["rec"], folders.get("det"), self.device)

    def _answers(self, model: Any, images: list[np.ndarray]) -> list[list[Line] | str]:
        """Lines, or the reason why there are none, of N BGR images; a batch that fails is read again one by one."""
        try:
            with _lock:
                results = model.predict(images) if self.layout == "auto" else model.predict(images, batch_size=len(images))
            return [_lines(result) for result in results]
        except Exception as error:  # OpenCV's, PaddleX's and onnxruntime's errors share no base class
            if len(images) == 1:
                return [f"PaddleOCR failed: {type(error).__name__} {error}"]
            return [answer for image in images for answer in self._answers(model, [image])]


def _lines(result: Any) -> list[Line] | str:
    """Lines of one result, of recognition alone (`rec_text`) or of the pipeline (`rec_texts`)."""
    texts, scores = ([result["rec_text"]], [result["rec_score"]]) if "rec_text" in result else (
        result["rec_texts"], result["rec_scores"]
    )  # fmt: skip
    if not np.isfinite(scores).all():
        return "the recogniser gave non-finite probabilities"
    return [Line(text, float(score)) for text, score in zip(texts, scores, strict=True) if text]


def _batches(images: Sequence[np.ndarray], size: int) -> list[list[int]]:
    """Indices of images, those of one shape together, at most `size` at once."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(index)
    return [indices[start : start + size] for indices in by_shape.values() for start in range(0, len(indices), size)]


@cache
def _load(recognition: Path, detection: Path | None, device: str) -> Any:
    names = {task: _model_name(task, folder) for task, folder in (("rec", recognition), ("det", detection)) if folder}
    try:
        import logging

        from paddleocr import PaddleOCR, TextRecognition

        logging.getLogger("paddlex").setLevel(logging.ERROR)  # it announces every model in colour
    except ImportError as error:
        raise _unavailable(f'paddleocr cannot be imported ({error}); install it: pip install "xomni-rl[paddle]"') from error
    try:
        if detection is None:
            return TextRecognition(model_name=names["rec"], model_dir=str(recognition), engine="onnxruntime", device=device)
        return PaddleOCR(
            text_recognition_model_name=names["rec"],
            text_recognition_model_dir=str(recognition),
            text_recognition_batch_size=1,
            text_detection_model_name=names["det"],
            text_detection_model_dir=str(detection),
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
            engine="onnxruntime",
            device=device,
        )
    except Exception as error:  # PaddleOCR raises bare Exceptions, and whatever its parts raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        folders = " and ".join(str(folder) for folder in (recognition, detection) if folder)
        raise _unavailable(
            f"PaddleOCR cannot use {folders} on device {device} ({reason}); give folders of ONNX models that PaddleOCR exported"
        ) from error


def _model_name(task: str, folder: Path) -> str:
    """PaddleOCR's name of the model in a folder. Raises: RewardUnavailableError for what is not a model folder."""
    remedy = f"give a PaddleOCR model folder with inference.onnx and inference.yml as engine_options.{_OPTIONS[task]}"
    for name in ("inference.onnx", "inference.yml"):
        if not (folder / name).is_file():
            raise _unavailable(f"there is no file {folder / name}; {remedy}")
    try:
        return str(yaml.safe_load((folder / "inference.yml").read_text(encoding="utf-8"))["Global"]["model_name"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise _unavailable(f"{folder / 'inference.yml'} names no Global.model_name; {remedy}") from error


@cache
def _wheel_folder(task: str) -> Path:
    """The rapidocr wheel's model as a PaddleOCR model folder, made once in the user's cache.

    Raises: RewardUnavailableError if the model is missing or the cache cannot be written.
    """
    from xomni_rl.rewards.ocr_engine import wheel_model

    model = wheel_model(task)
    recipe = yaml.safe_dump(_recipe(task, model), allow_unicode=True)
    digest = hashlib.sha256(model.read_bytes() + recipe.encode()).hexdigest()[:12]
    parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xomni_rl" / "paddleocr"
    folder = parent / f"{_NAMES[task]}-{digest}"
    if folder.is_dir():
        return folder
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: another process sees all of the folder or nothing of it.
        with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as beside:
            shutil.copyfile(model, Path(beside, "inference.onnx"))
            Path(beside, "inference.yml").write_text(recipe, encoding="utf-8")
            Path(beside).rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been faster
            raise _unavailable(f"{parent} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can") from error
    return folder


def _recipe(task: str, model: Path) -> dict[str, Any]:
    """What PaddleOCR needs to know about a model of the rapidocr wheel: the content of its `inference.yml`."""
    if task == "det":
        return {
            "Global": {"model_name": _NAMES[task]},
            "PreProcess": {
                "transform_ops": [
                    {"DetResizeForTest": {"resize_long": 960}},
                    {"NormalizeImage": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "order": "hwc"}},
                    {"ToCHWImage": None},
                ]
            },
            "PostProcess": {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "unclip_ratio": 1.5},
        }
    from xomni_rl.rewards.ocr_engine import OcrEngine

    _, *characters, _ = OcrEngine(str(model)).recogniser().alphabet  # PaddleOCR adds the blank and the space itself
    return {
        "Global": {"model_name": _NAMES[task]},
        "PreProcess": {"transform_ops": [{"RecResizeImg": {"image_shape": [3, 48, 320]}}]},
        "PostProcess": {"name": "CTCLabelDecode", "character_dict": characters},
    }


def _unavailable(reason: str) -> RewardUnavailableError:
    return RewardUnavailableError(f'reward "ocr": {reason}')
