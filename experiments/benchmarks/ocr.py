"""Images per second of the OCR reward against a loop over RapidOCR's own call, on the same signs."""

import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from xomni_rl.prompt_sets.signs import COLOURS, random_strings, render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import RewardResult, build_reward

LEAST_AGREEMENT = 0.99


def run(count: int = 256, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """Reads `count` clear signs both ways, in turns, then the same signs blurred and noisy, and prints a table.

    The reward reads a second time what it is not sure of, so unclear images, such as an untrained model draws, cost more.

    Args:
        count: signs.
        repeats: counted passes over the clear signs after one that isn't; over the unclear ones there are two.
        seed: which signs.
    Returns: `ratio` of images per second (median over the pairs of passes), `agreement` (share of signs read the same),
        `images_per_second`, `peer_images_per_second`, `exact`, `peer_exact` (share read right), `ratios` of the passes,
        `images`; and `unclear`, the same figures for the unclear signs.
    Raises: RuntimeError if the two read less than 99 % of the clear signs the same: then they do not do the same work.
    """
    rng = np.random.default_rng(seed)
    texts = random_strings(rng, count, heldout=True)
    colours = [list(COLOURS)[index] for index in rng.integers(len(COLOURS), size=count)]
    images = np.stack([render_sign(text, colour, rng) for text, colour in zip(texts, colours, strict=True)])
    figures = _compare(images, texts, repeats)
    figures["unclear"] = _compare(_spoilt(images, rng), texts, repeats=2)
    _report(figures, count)
    if figures["agreement"] < LEAST_AGREEMENT:
        raise RuntimeError(f"only {figures['agreement']:.3f} of the signs are read as RapidOCR reads them")
    return figures


def _spoilt(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The images blurred (σ = 2 px) and noisy (σ = 40 of 255), so that two thirds are read twice: uint8 [N, H, W, 3]."""
    blurred = gaussian_filter(images.astype(np.float64), sigma=(0, 2, 2, 0))
    return np.clip(blurred + rng.normal(0, 40, images.shape), 0, 255).astype(np.uint8)


def _compare(images: np.ndarray, texts: list[str], repeats: int) -> dict[str, Any]:
    """Both readers over the same images, in turns: one pass each that does not count, then `repeats` that do."""
    reward = build_reward("ocr", layout="line")
    prompts = [Prompt(id=str(index), text="a sign", texts=(text,)) for index, text in enumerate(texts)]
    peer = _rapidocr()
    ours_s, peer_s = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        peer_read = peer(images)
        between = time.perf_counter()
        result = reward(images, prompts)
        peer_s.append(between - start)
        ours_s.append(time.perf_counter() - between)
    return _figures(np.array(ours_s[1:]), np.array(peer_s[1:]), result, peer_read, texts)


def _rapidocr() -> Any:
    """A loop over RapidOCR's call as it comes, recognition only (the signs are one line each)."""
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "critical"})

    def read(images: np.ndarray) -> list[str]:
        texts = []
        for image in images:
            found = engine(np.ascontiguousarray(image[..., ::-1]), use_det=False, use_cls=False, use_rec=True).txts
            texts.append(found[0] if found else "")
        return texts

    return read


def _figures(
    ours: np.ndarray, peer: np.ndarray, result: RewardResult, peer_read: list[str], texts: list[str]
) -> dict[str, Any]:
    read = [detail["read"] for detail in result.details]
    pairs = [float(ratio) for ratio in peer / ours]
    return {
        "ratio": float(np.median(pairs)),
        "agreement": float(np.mean([a == b.strip() for a, b in zip(read, peer_read, strict=True)])),
        "images_per_second": len(texts) / float(np.median(ours)),
        "peer_images_per_second": len(texts) / float(np.median(peer)),
        "exact": float(result.metrics["exact"].mean()),
        "peer_exact": float(np.mean([a == b for a, b in zip(peer_read, texts, strict=True)])),
        "ratios": [round(ratio, 3) for ratio in pairs],
        "images": len(texts),
    }


def _report(figures: dict[str, Any], count: int) -> None:
    table = Table(title=f"reading {count} signs of 32×96 px")
    for column in ("reader", "images/s", "read right", "read the same", "ratio"):
        table.add_column(column, justify="left" if column == "reader" else "right")
    for name, row in (("clear", figures), ("blurred, noisy", figures["unclear"])):
        same, ratio = f"{row['agreement']:.1%}", f"{row['ratio']:.2f}×"
        table.add_row(f"ocr reward, {name}", f"{row['images_per_second']:.0f}", f"{row['exact']:.3f}", same, ratio)
        table.add_row(f"RapidOCR, {name}", f"{row['peer_images_per_second']:.0f}", f"{row['peer_exact']:.3f}", "", "")
    Console().print(table)
