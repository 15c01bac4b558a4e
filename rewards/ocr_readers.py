"""The readers of the `ocr` reward by name. Train on one, and hold another one out to see whether the text is really there.

| engine      | model                                     | needs                   | use it |
|-------------|-------------------------------------------|-------------------------|--------|
| `rapidocr`  | PP-OCRv6 small, in the rapidocr wheel     | nothing                 | to train on |
| `ppocrv4`   | PP-OCRv4 mobile, in `weights/ppocrv4`     | nothing                 | as the held-out reader |
| `paddleocr` | any, through PaddleOCR's own pipeline     | extra `paddle`          | to compare with projects that use it |
| `got_ocr2`  | GOT-OCR 2.0, through transformers         | its weights, a GPU      | for documents and long text |
| `vlm`       | any vision-language model, here or served | its weights or a server | for long text and unusual lettering |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xomni_rl.registry import unknown_name

ENGINES = ("rapidocr", "ppocrv4", "paddleocr", "got_ocr2", "vlm")
LAYOUTS = ("line", "auto")


@dataclass(frozen=True)
class Line:
    """One line of text as read.

    Args:
        text: what was read; empty for no text.
        confidence: mean probability of its characters in [0, 1], 0 for no text; None = the reader does not say.
    """

    text: str
    confidence: float | None = None


Pages = tuple[list[list[Line]], dict[int, str]]


class Reader(Protocol):
    """Reads images. It holds options only, so that it can be pickled; its model is loaded once per process."""

    def read(self, images: Sequence[np.ndarray]) -> Pages:
        """Reads N uint8 [H, W, 3] RGB images of any sizes.

        Returns: N lists of lines in reading order, empty where there is no text; and index → reason for failed images.
        Raises: RewardUnavailableError if the reader cannot work at all.
        """

    def load(self) -> None:
        """Loads the models. Raises: RewardUnavailableError with the remedy."""

    def files(self) -> tuple[Path, ...]:
        """The files that decide what is read. Raises: RewardUnavailableError if they are missing."""


def build_reader(
    engine: str, layout: str, model_path: str | None, workers: int | None, engine_options: Mapping[str, Any]
) -> Reader:
    """The reader that the options of the `ocr` reward describe.

    Raises: ValueError for an unknown engine or option, or one that the engine does not have.
    """
    if engine not in ENGINES:
        raise ValueError(unknown_name("engine", str(engine), ENGINES))
    if layout not in LAYOUTS:
        raise ValueError(unknown_name("layout", str(layout), LAYOUTS))
    if model_path is not None and engine != "rapidocr":
        raise ValueError(f"model_path is for engine rapidocr; what engine {engine} reads with is set in engine_options")
    if engine in ("rapidocr", "ppocrv4"):
        from xomni_rl.rewards.ocr_engine import OcrEngine, second_model

        check_options(engine, engine_options, ())
        return OcrEngine(str(second_model()) if engine == "ppocrv4" else model_path, workers, layout)
    if workers is not None:
        raise ValueError(f"workers is for the engines rapidocr and ppocrv4, not for {engine}")
    if engine == "vlm":
        from xomni_rl.rewards.reader_vlm import VlmReader

        return VlmReader.from_options(engine_options)
    if engine == "paddleocr":
        from xomni_rl.rewards.reader_paddle import PaddleReader

        check_options(engine, engine_options, [field.name for field in fields(PaddleReader) if field.name != "layout"])
        return PaddleReader(**engine_options, layout=layout)
    from xomni_rl.rewards.reader_got import GotReader

    check_options(engine, engine_options, [field.name for field in fields(GotReader)])
    return GotReader(**engine_options)


def check_options(engine: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises ValueError for an option that the engine does not have."""
    for option in options:
        if not known:
            raise ValueError(f'engine {engine} has no options of its own, got "{option}"')
        if option not in known:
            raise ValueError(unknown_name(f"option of engine {engine}", str(option), known))
