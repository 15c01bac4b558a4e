"""The embedded OCR engine: PP-OCR models, inside the `rapidocr` wheel and in this package, run in batches by onnxruntime.

Recognition runs the ONNX model directly instead of calling RapidOCR once per image, in batches spread over threads whose
calls use one core each. RapidOCR pads every crop to 320 px, and the padding changes what is read: at any narrower width
1–3 % of clean signs are read differently. So a crop is read with little padding first, and again at RapidOCR's width if
any position of the first reading was less than SURE. What a crop is read as depends on the crop alone, not on its batch.
Detection (where the layout is unknown) is RapidOCR's own.
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

from xomni_rl import weights
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.ocr_readers import Line, Pages

HEIGHT = 48
"""Height in px at which the recogniser reads a line."""
MARGIN = 16
"""Least padding in px to the right of a line in the first reading."""
WIDTH_STEP = 32
FULL_WIDTH = 320
"""Width in px that RapidOCR pads crops to."""
NARROW = 240
"""First readings wider than this are not worth it: such a crop is read at its full width at once."""
SURE = 0.9
"""Least probability of every position at which a first reading stands. On five sets of 256 signs 0.8 left up to 0.4 % read
unlike RapidOCR and 0.9 none, for 8 % of the signs read twice (six other sets: 1 sign of 1,536 unlike). Of the embedded
stack's own pictures before training, 24 % are read twice."""
MAX_WIDTH = 3200
"""Widest line in px at HEIGHT; wider ones are squeezed, so that a freak image cannot take all memory."""
BATCH = 8
BATCH_PIXELS = BATCH * FULL_WIDTH
"""Widest batch in px (crops × padded width); bounds memory at about 100 MB per thread."""
DETECTION_SIDE = 960
"""Longest side in px that detection sees; smaller images keep their size (upscaling them costs time, not accuracy)."""
MAX_ASPECT = 48
"""Thinnest image that detection is given."""
TESTED_MODELS = {"rec": "PP-OCRv6_rec_small.onnx", "det": "PP-OCRv6_det_small.onnx"}
SECOND_MODEL = "ch_PP-OCRv4_rec_infer.onnx"

_lock = threading.Lock()
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class OcrEngineError(RuntimeError):
    """One image cannot be read."""


@dataclass(frozen=True)
class Reading(Line):
    """A line with the least probability of any of its positions, blanks included, in [0, 1]."""

    confidence: float = 0.0
    certainty: float = 0.0


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
        layout: what `read` does: "line" = every image is one line; "auto" = find the lines first.
    """

    model_path: str | None = None
    workers: int | None = None
    layout: str = "auto"

    def read(self, images: Sequence[np.ndarray]) -> Pages:
        """Lines of N uint8 [H, W, 3] images, and index → reason for failed ones. Raises: RewardUnavailableError."""
        if self.layout == "auto":
            return self.read_pages(images)
        lines, failures = self.read_lines(images)
        return [[] if line is None else [line] for line in lines], failures

    def load(self) -> None:
        """Raises: RewardUnavailableError if a model is missing, damaged or no recogniser."""
        self.recogniser()
        if self.layout == "auto":
            _detector()

    def files(self) -> tuple[Path, ...]:
        """The recognition model, and the detection model if lines are looked for. Raises: RewardUnavailableError."""
        recognition = _model_file(self.model_path)
        return (recognition, wheel_model("det")) if self.layout == "auto" else (recognition,)

    def read_lines(self, crops: Sequence[np.ndarray]) -> tuple[list[Line | None], dict[int, str]]:
        """Reads crops of one line each.

        Args:
            crops: N uint8 [H, W, 3] RGB.
        Returns: N lines, None where reading failed; and index → reason for those.
        Raises: RewardUnavailableError if the model cannot be loaded.
        """
        recogniser = self.recogniser()
        widths = [padded_widths(*crop.shape[:2]) for crop in crops]
        answers = self._read(recogniser, crops, [first for first, _ in widths])
        unsure = [
            index
            for index, (answer, (first, full)) in enumerate(zip(answers, widths, strict=True))
            if isinstance(answer, Reading) and answer.certainty < SURE and first < full
        ]
        again = self._read(recogniser, [crops[index] for index in unsure], [widths[index][1] for index in unsure])
        for index, answer in zip(unsure, again, strict=True):
            answers[index] = answer
        failures = {index: str(answer) for index, answer in enumerate(answers) if isinstance(answer, OcrEngineError)}
        return [answer if isinstance(answer, Reading) else None for answer in answers], failures

    def read_pages(self, images: Sequence[np.ndarray]) -> Pages:
        """Finds and reads all lines of images, in reading order (top to bottom, then left to right).

        Args:
            images: N uint8 [H, W, 3] RGB.
        Returns: N lists of lines, empty where there is no text; and index → reason for images that failed.
        Raises: RewardUnavailableError if a model cannot be loaded.
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
        """The loaded model. Raises: RewardUnavailableError if it is missing, damaged or no recogniser."""
        with _lock:
            return _load_recogniser(self.model_path)

    def _read(
        self, recogniser: Recogniser, crops: Sequence[np.ndarray], widths: Sequence[int]
    ) -> list[Reading | OcrEngineError]:
        """One line or error per crop, each padded to its width."""
        batches = _cut(widths, self._threads())
        read = self._map(lambda batch: _read_batch(recogniser, [(crops[i], widths[i]) for i in batch]), batches)
        answers = {
            index: answer
            for batch, found in zip(batches, read, strict=True)
            for index, answer in zip(batch, found, strict=True)
        }
        return [answers[index] for index in range(len(crops))]

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


def wheel_model(task: str = "rec") -> Path:
    """The recognition ("rec") or detection ("det") model inside the rapidocr wheel.

    Raises: RewardUnavailableError if rapidocr is not installed or holds no such model, or several unknown ones (scores must
        not depend on which was downloaded last).
    """
    try:
        import rapidocr
    except ImportError as error:
        raise _unavailable(f"rapidocr cannot be imported ({error}); install it: pip install rapidocr") from error
    folder = Path(rapidocr.__file__).parent / "models"
    if (folder / TESTED_MODELS[task]).is_file():
        return folder / TESTED_MODELS[task]
    models = sorted(folder.glob(f"*{task}*.onnx"))
    if len(models) != 1:
        names = ", ".join(model.name for model in models) or "none"
        remedy = (
            "choose one with model_path"
            if task == "rec"
            else "install the release that this was tested with: pip install rapidocr==3.10"
        )
        raise _unavailable(f"expected one {task} model in {folder}, found {names}; {remedy}")
    return models[0]


def second_model() -> Path:
    """The recognition model of the second reader, PP-OCRv4; its card lies beside it."""
    return Path(weights.__file__).parent / "ppocrv4" / SECOND_MODEL


def _model_file(model_path: str | None) -> Path:
    path = wheel_model() if model_path is None else Path(model_path)
    if not path.is_file():
        raise _unavailable(f"there is no recognition model {path}; give the ONNX file of one as model_path")
    return path


def _unavailable(reason: str) -> RewardUnavailableError:
    return RewardUnavailableError(f'reward "ocr": {reason}')


def line_width(height: int, width: int) -> int:
    """Width in px of a crop of that size when it is HEIGHT px high."""
    return min(max(-(-HEIGHT * width // height), 1), MAX_WIDTH)


def padded_widths(height: int, width: int) -> tuple[int, int]:
    """(first, full) width in px that a crop of that size is padded to; equal where one reading is enough."""
    line = line_width(height, width)
    full = _round_up(max(line, FULL_WIDTH))
    first = _round_up(line + MARGIN)
    return (first if first <= NARROW else full), full


def _round_up(width: int) -> int:
    return -(-width // WIDTH_STEP) * WIDTH_STEP


def greedy_ctc(probabilities: np.ndarray, alphabet: Sequence[str]) -> list[Reading]:
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
        confidence = float(chances[kept].mean()) if kept.any() else 0.0
        lines.append(Reading(text, confidence, float(chances.min())))
    return lines


@cache
def _load_recogniser(model_path: str | None) -> Recogniser:
    try:
        import onnxruntime
    except ImportError as error:
        raise _unavailable(f"onnxruntime cannot be imported ({error}); install it: pip install onnxruntime") from error
    path = _model_file(model_path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the caller's thread does the work; batches run side by side
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise _unavailable(f"{path} cannot be loaded, get it anew ({error})") from error
    characters = session.get_modelmeta().custom_metadata_map.get("character")
    if characters is None:
        raise _unavailable(f'{path} is no text recogniser: its metadata has no "character" alphabet')
    # Not splitlines(): the alphabet may hold U+2028 and its like as characters of their own.
    alphabet = ("", *characters.rstrip("\n").replace("\r\n", "\n").split("\n"), " ")
    classes = session.get_outputs()[0].shape[-1]
    if classes != len(alphabet):
        raise _unavailable(f"{path}: {classes} classes do not fit an alphabet of {len(alphabet)} characters")
    return Recogniser(session, session.get_inputs()[0].name, alphabet)


def _cut(widths: Sequence[int], threads: int) -> list[list[int]]:
    """Indices of crops in batches of one padded width, small enough for memory and for every thread to get some."""
    by_width: dict[int, list[int]] = {}
    for index, width in enumerate(widths):
        by_width.setdefault(width, []).append(index)
    batches = []
    for width, indices in sorted(by_width.items(), reverse=True):  # widest first: the long ones do not come last
        size = max(1, min(BATCH, BATCH_PIXELS // width, -(-len(indices) // threads)))
        batches += [indices[start : start + size] for start in range(0, len(indices), size)]
    return batches


def _read_batch(recogniser: Recogniser, batch: list[tuple[np.ndarray, int]]) -> list[Reading | OcrEngineError]:
    """One line or error per (crop, width); a batch that fails is read again one by one, to find which it was."""
    try:
        return list(_recognise(recogniser, batch))
    except Exception as error:  # onnxruntime's and OpenCV's errors share no base class
        if len(batch) == 1:
            return [OcrEngineError(f"recognition failed: {type(error).__name__} {error}")]
        return [answer for single in batch for answer in _read_batch(recogniser, [single])]


def _recognise(recogniser: Recogniser, batch: Sequence[tuple[np.ndarray, int]]) -> list[Reading]:
    inputs = np.stack([_prepare(crop, width) for crop, width in batch])
    probabilities = recogniser.session.run(None, {recogniser.input_name: inputs})[0]
    return greedy_ctc(probabilities, recogniser.alphabet)


def _prepare(crop: np.ndarray, width: int) -> np.ndarray:
    """float32 [3, HEIGHT, width]: BGR in [-1, 1], zero (mid-grey) to the right of the line."""
    import cv2

    line = line_width(*crop.shape[:2])
    resized = cv2.resize(crop, (line, HEIGHT))[..., ::-1].astype(np.float32)
    prepared = np.zeros((3, HEIGHT, width), dtype=np.float32)
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
                "Det.model_path": str(wheel_model("det")),
                "Det.limit_type": "max",
                "Det.limit_side_len": DETECTION_SIDE,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
    except RewardUnavailableError:
        raise
    except Exception as error:  # a missing package, a damaged model or a refused option: none has a common class
        raise _unavailable(
            f"RapidOCR's text detection cannot be loaded ({error}); install it anew: pip install rapidocr"
        ) from error


def _detect(detector: Any, image: np.ndarray) -> list[np.ndarray] | OcrEngineError:
    """Crops of the lines of one image in reading order; empty if there is no text."""
    from rapidocr.utils.process_img import get_rotate_crop_image

    try:
        image = _thickened(image)
        bgr = np.ascontiguousarray(image[..., ::-1])
        boxes = detector(bgr, use_det=True, use_cls=False, use_rec=False).boxes
        crops = [] if boxes is None else [get_rotate_crop_image(image, box.astype(np.float32)) for box in boxes]
    except Exception as error:  # OpenCV's, RapidOCR's and onnxruntime's errors share no base class
        return OcrEngineError(f"text detection failed: {type(error).__name__} {error}")
    return [crop for crop in crops if 0 not in crop.shape]


def _thickened(image: np.ndarray) -> np.ndarray:
    """The image, or if it is a thin strip, the image continued below or to the right by its last row or column.

    RapidOCR shrinks long images and fails where the short side rounds to nothing.
    """
    height, width = image.shape[:2]
    least = -(-max(height, width) // MAX_ASPECT)
    below, right = max(least - height, 0), max(least - width, 0)
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge") if below or right else image
