"""The embedded OCR engine: the PP-OCR models inside the `rapidocr` wheel, run in batches by onnxruntime.

Recognition runs the ONNX model directly instead of calling RapidOCR once per image: crops are padded to their own width
plus a margin instead of to 320 px, and batches are spread over threads whose calls use one core each. What a crop is read
as depends on the crop alone, not on its batch. Detection (where the layout is unknown) is RapidOCR's own.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

HEIGHT = 48
"""Height in px at which the recogniser reads a line."""
MARGIN = 32
"""Least padding in px to the right of a line; without it the recogniser drops characters and spaces at the end."""
WIDTH_STEP = 8
MAX_WIDTH = 3200
"""Widest line in px at HEIGHT; wider ones are squeezed, so that a freak image cannot take all memory."""
BATCH = 8
BATCH_PIXELS = BATCH * 320
"""Widest batch in px (crops × padded width); bounds memory at about 100 MB per thread."""
DETECTION_SIDE = 960
"""Longest side in px that detection sees; smaller images keep their size (upscaling them costs time, not accuracy)."""
TESTED_MODEL = "PP-OCRv6_rec_small.onnx"

_lock = threading.Lock()
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class OcrEngineError(RuntimeError):
    """The engine cannot be loaded or cannot read."""


@dataclass(frozen=True)
class Line:
    """One line of text as read: the text, and the mean probability of its characters in [0, 1] (0 for no text)."""

    text: str
    confidence: float


@dataclass(frozen=True)
class Recogniser:
    """A loaded recognition model. `session.run` may be called from several threads at once."""

    session: Any
    input_name: str
    alphabet: tuple[str, ...]


@dataclass(frozen=True)
class OcrEngine:
    """Reads images on `workers` threads; models are loaded at the first use and shared by all engines of a process.

    Args:
        model_path: another CTC recognition model of PaddleOCR's family; None = the one in the wheel.
        workers: threads; None = the number of usable cores.
    """

    model_path: str | None = None
    workers: int | None = None

    def read_lines(self, crops: Sequence[np.ndarray]) -> tuple[list[Line | None], dict[int, str]]:
        """Reads crops of one line each.

        Args:
            crops: N uint8 [H, W, 3] RGB.
        Returns: N lines, None where reading failed; and index → reason for those.
        Raises: OcrEngineError if the model cannot be loaded.
        """
        recogniser = self.recogniser()
        lines: list[Line | None] = [None] * len(crops)
        failures: dict[int, str] = {}
        batches = _cut(crops, self._threads())
        for batch, answers in zip(batches, self._map(lambda b: _read_batch(recogniser, crops, b), batches), strict=True):
            for index, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Line):
                    lines[index] = answer
                else:
                    failures[index] = str(answer)
        return lines, failures

    def read_pages(self, images: Sequence[np.ndarray]) -> tuple[list[list[Line]], dict[int, str]]:
        """Finds and reads all lines of images, in reading order (top to bottom, then left to right).

        Args:
            images: N uint8 [H, W, 3] RGB.
        Returns: N lists of lines, empty where there is no text; and index → reason for images that failed.
        Raises: OcrEngineError if a model cannot be loaded.
        """
        detector = _detector()
        found = self._map(lambda image: _detect(detector, image), images)
        failures = {index: str(answer) for index, answer in enumerate(found) if isinstance(answer, OcrEngineError)}
        crops_of = [[] if isinstance(answer, OcrEngineError) else answer for answer in found]
        owners = [index for index, crops in enumerate(crops_of) for _ in crops]
        lines, failed = self.read_lines([crop for crops in crops_of for crop in crops])
        pages: list[list[Line]] = [[] for _ in images]
        for owner, line in zip(owners, lines, strict=True):
            if line is not None:
                pages[owner].append(line)
        return pages, failures | {owners[index]: reason for index, reason in failed.items()}

    def recogniser(self) -> Recogniser:
        """The loaded model. Raises: OcrEngineError if it is missing, damaged or no recogniser."""
        with _lock:
            return _load_recogniser(self.model_path)

    def _threads(self) -> int:
        return self.workers or usable_cores()

    def _map(self, function: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
        # A pool per call costs 0.1 ms, and leaves no threads behind that a fork would break.
        with ThreadPoolExecutor(self._threads()) as pool:
            return list(pool.map(function, items))


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: respects taskset and containers
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def wheel_model() -> Path:
    """The recognition model inside the rapidocr wheel.

    Raises: OcrEngineError if rapidocr is not installed or holds no model, or several unknown ones (scores must not depend
        on which was downloaded last).
    """
    try:
        import rapidocr
    except ImportError as error:
        raise OcrEngineError(f"rapidocr cannot be imported: {error}") from error
    folder = Path(rapidocr.__file__).parent / "models"
    if (folder / TESTED_MODEL).is_file():
        return folder / TESTED_MODEL
    models = sorted(folder.glob("*rec*.onnx"))
    if len(models) != 1:
        names = ", ".join(model.name for model in models) or "none"
        raise OcrEngineError(f"expected one recognition model in {folder}, found {names}; choose one with model_path")
    return models[0]


def fitted_width(height: int, width: int) -> tuple[int, int]:
    """(width of the line, padded width) in px for a crop of that size; both at HEIGHT px high."""
    line = min(max(-(-HEIGHT * width // height), 1), MAX_WIDTH)
    return line, -(-(line + MARGIN) // WIDTH_STEP) * WIDTH_STEP


def greedy_ctc(probabilities: np.ndarray, alphabet: Sequence[str]) -> list[Line]:
    """Best path of CTC: the likeliest class per position, repeats merged, blanks (class 0) dropped.

    Args:
        probabilities: float [N, T, V] over the alphabet.
        alphabet: V strings; the first is the blank.
    Raises: ValueError if the last axis is not the alphabet's; OcrEngineError for non-finite probabilities.
    """
    if probabilities.ndim != 3 or probabilities.shape[2] != len(alphabet):
        raise ValueError(f"expected probabilities [N, T, {len(alphabet)}], got {list(probabilities.shape)}")
    best = probabilities.argmax(axis=2)
    peak = np.take_along_axis(probabilities, best[..., None], axis=2)[..., 0]
    if not np.isfinite(peak).all():  # argmax lands on a NaN or an infinity if there is one
        raise OcrEngineError("the recogniser gave non-finite probabilities")
    lines = []
    for row, chances in zip(best, peak, strict=True):
        kept = row != 0
        kept[1:] &= row[1:] != row[:-1]
        text = "".join(alphabet[index] for index in row[kept])
        lines.append(Line(text, float(chances[kept].mean()) if kept.any() else 0.0))
    return lines


@cache
def _load_recogniser(model_path: str | None) -> Recogniser:
    try:
        import onnxruntime
    except ImportError as error:
        raise OcrEngineError(f"onnxruntime cannot be imported: {error}") from error
    path = wheel_model() if model_path is None else Path(model_path)
    if not path.is_file():
        raise OcrEngineError(f"there is no recognition model {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the caller's thread does the work; batches run side by side
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise OcrEngineError(f"{path} cannot be loaded: {error}") from error
    characters = session.get_modelmeta().custom_metadata_map.get("character")
    if characters is None:
        raise OcrEngineError(f'{path} is no text recogniser: its metadata has no "character" alphabet')
    # Not splitlines(): the alphabet may hold U+2028 and its like as characters of their own.
    alphabet = ("", *characters.rstrip("\n").replace("\r\n", "\n").split("\n"), " ")
    classes = session.get_outputs()[0].shape[-1]
    if classes != len(alphabet):
        raise OcrEngineError(f"{path}: {classes} classes do not fit an alphabet of {len(alphabet)} characters")
    return Recogniser(session, session.get_inputs()[0].name, alphabet)


def _cut(crops: Sequence[np.ndarray], threads: int) -> list[list[int]]:
    """Indices of crops in batches of one padded width, small enough for memory and for every thread to get some."""
    by_width: dict[int, list[int]] = {}
    for index, crop in enumerate(crops):
        by_width.setdefault(fitted_width(*crop.shape[:2])[1], []).append(index)
    batches = []
    for width, indices in sorted(by_width.items(), reverse=True):  # widest first: the long ones do not come last
        size = max(1, min(BATCH, BATCH_PIXELS // width, -(-len(indices) // threads)))
        batches += [indices[start : start + size] for start in range(0, len(indices), size)]
    return batches


def _read_batch(recogniser: Recogniser, crops: Sequence[np.ndarray], batch: list[int]) -> list[Line | OcrEngineError]:
    """One line or error per crop; a batch that fails is read again crop by crop, to find which one it was."""
    try:
        return list(_recognise(recogniser, [crops[index] for index in batch]))
    except Exception as error:  # onnxruntime's and OpenCV's errors share no base class
        if len(batch) == 1:
            return [OcrEngineError(f"recognition failed: {error}")]
        return [answer for index in batch for answer in _read_batch(recogniser, crops, [index])]


def _recognise(recogniser: Recogniser, crops: Sequence[np.ndarray]) -> list[Line]:
    batch = np.stack([_prepare(crop) for crop in crops])
    (probabilities,) = recogniser.session.run(None, {recogniser.input_name: batch})[:1]
    return greedy_ctc(probabilities, recogniser.alphabet)


def _prepare(crop: np.ndarray) -> np.ndarray:
    """float32 [3, HEIGHT, padded width]: BGR in [-1, 1], zero (mid-grey) to the right of the line."""
    import cv2

    line, padded = fitted_width(*crop.shape[:2])
    resized = cv2.resize(crop, (line, HEIGHT))[..., ::-1].astype(np.float32)
    prepared = np.zeros((3, HEIGHT, padded), dtype=np.float32)
    prepared[:, :, :line] = (resized.transpose(2, 0, 1) / 255 - 0.5) / 0.5
    return prepared


def _detector() -> Any:
    with _lock:
        return _load_detector()


@cache
def _load_detector() -> Any:
    try:
        from rapidocr import RapidOCR

        return RapidOCR(
            params={
                "Global.log_level": "critical",  # "no text found" is an answer, not worth a log line per image
                "Det.limit_type": "max",
                "Det.limit_side_len": DETECTION_SIDE,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
    except Exception as error:  # a missing package, a damaged model or a refused option: none has a common class
        raise OcrEngineError(f"RapidOCR's text detection cannot be loaded: {error}") from error


def _detect(detector: Any, image: np.ndarray) -> list[np.ndarray] | OcrEngineError:
    """Crops of the lines of one image in reading order; empty if there is no text."""
    from rapidocr.utils.process_img import get_rotate_crop_image

    try:
        bgr = np.ascontiguousarray(image[..., ::-1])
        boxes = detector(bgr, use_det=True, use_cls=False, use_rec=False).boxes
        crops = [] if boxes is None else [get_rotate_crop_image(image, box.astype(np.float32)) for box in boxes]
    except Exception as error:  # OpenCV's, RapidOCR's and onnxruntime's errors share no base class
        return OcrEngineError(f"text detection failed: {error}")
    return [crop for crop in crops if 0 not in crop.shape]
