"""Runs of `xomni-rl score` on many tiny images: killed and gone on with, or left alone, with its memory watched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16
"""Height and width of an image in px."""
INTERVAL = 0.02
"""Seconds between two looks at a run whose memory is watched."""
MOMENT = 0.002
"""The same for one that is to be killed at a batch."""


@dataclass(frozen=True)
class Watched:
    """A run that ended.

    Args:
        seconds: it took.
        peaks: share of the images kept → largest resident memory up to then, in MB.
    """

    seconds: float
    peaks: dict[float, float]


def make_images(folder: Path, count: int, seed: int = 0) -> None:
    """Writes noise pictures and their prompts.jsonl."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with (folder / "prompts.jsonl").open("w") as prompts:
        for index in range(count):
            pixels = rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:06d}.png", compress_level=1)
            prompts.write(json.dumps({"id": f"{index:06d}", "text": f"noise number {index}"}) + "\n")


def command(folder: Path, out: Path, rewards: Sequence[str], workers: int) -> list[str]:
    """The words of the command."""
    start = [sys.executable, "-m", "xomni_rl", "score", str(folder), "--out", str(out)]
    return [*start, "--reward", ",".join(rewards), "--workers", str(workers)]


def kept(out: Path) -> int:
    """How many batches are kept beside a table."""
    folder = out.with_name(f".{out.name}.parts")
    try:
        return sum(name.endswith(".jsonl") for name in os.listdir(folder))
    except FileNotFoundError:
        return 0


def killed_at(words: Sequence[str], out: Path, batches: int) -> int:
    """Runs until so many batches are kept, then kills it without warning. Returns: how many were kept.

    Raises: RuntimeError if it ended before.
    """
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while kept(out) < batches:
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with status {process.returncode} before it could be killed")
            time.sleep(MOMENT)
        process.kill()
    return kept(out)


def watched(words: Sequence[str], out: Path, batches: int, shares: Sequence[float]) -> Watched:
    """Runs to the end and notes the largest memory when each share of the batches is first reached, and at the end.

    Raises: RuntimeError with the end of its output if it fails.
    """
    peaks: dict[float, float] = {}
    start = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        highest = 0.0
        while process.poll() is None:
            highest = max(highest, _peak_memory(process.pid))
            share = kept(out) / batches
            peaks |= {each: highest for each in shares if share >= each and each not in peaks}
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        text = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"the run ended with status {process.returncode}: {text[-500:]}")
    return Watched(seconds, {**peaks, 1.0: highest})


def _peak_memory(pid: int) -> float:
    """Largest resident memory of a process so far, in MB; 0 once it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
