"""Images per second of the OCR reward against a loop over RapidOCR's own call, on the same signs."""

import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from xomni_rl.prompt_sets.signs import COLOURS, TEMPLATES, random_strings, render_sign, sign_prompt
from xomni_rl.rewards.base import RewardResult, build_reward

LEAST_AGREEMENT = 0.99


def run(count: int = 256, repeats: int = 5, seed: int = 0) -> dict[str, Any]:
    """Reads `count` signs both ways, in turns, and prints a table.

    Args:
        count: signs.
        repeats: counted passes after one that isn't.
        seed: which signs.
    Returns: `ratio` of images per second (median over the pairs of passes), `agreement` (share of signs read the same),
        `images_per_second`, `peer_images_per_second`, `exact`, `peer_exact` (share read right), `ratios`, `images`.
    Raises: RuntimeError if the two read less than 99 % of the signs the same: then the comparison means nothing.
    """
    rng = np.random.default_rng(seed)
    texts = random_strings(rng, count, heldout=True)
    colours = [list(COLOURS)[index] for index in rng.integers(len(COLOURS), size=count)]
    images = np.stack([render_sign(text, colour, rng) for text, colour in zip(texts, colours, strict=True)])
    prompts = [
        sign_prompt(text, colour, TEMPLATES[0], f"{index}")
        for index, (text, colour) in enumerate(zip(texts, colours, strict=True))
    ]
    reward = build_reward("ocr", layout="line")
    peer = _rapidocr()
    peer(images[:2])
    reward(images[:2], prompts[:2])
    ours_s, peer_s = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        peer_read = peer(images)
        between = time.perf_counter()
        result = reward(images, prompts)
        peer_s.append(between - start)
        ours_s.append(time.perf_counter() - between)
    figures = _figures(np.array(ours_s[1:]), np.array(peer_s[1:]), result, peer_read, texts)
    _report(figures, count)
    if figures["agreement"] < LEAST_AGREEMENT:
        raise RuntimeError(f"only {figures['agreement']:.3f} of the signs are read as RapidOCR reads them")
    return figures


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
    table = Table(title=f"reading {count} signs of 32×96 px, {figures['agreement']:.1%} of them the same")
    for column in ("reader", "images/s", "read right"):
        table.add_column(column, justify="left" if column == "reader" else "right")
    table.add_row("ocr reward, layout=line", f"{figures['images_per_second']:.0f}", f"{figures['exact']:.3f}")
    table.add_row("loop over RapidOCR", f"{figures['peer_images_per_second']:.0f}", f"{figures['peer_exact']:.3f}")
    table.add_row("ratio", f"{figures['ratio']:.2f}×", "")
    Console().print(table)
