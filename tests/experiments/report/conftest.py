"""Writes run folders of the documented form with made-up figures: real files, real pictures, no training."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from xomni_rl.prompt_sets.signs import COLOURS, render_sign, signs

WriteRun = Callable[..., Path]

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"path": "embedded", "dtype": "float32", "device": "auto"},
    "reward": {
        "components": {
            "ocr": {"reward": "ocr", "weight": 1.0, "options": {"metric": "edit"}},
            "colour": {"reward": "background", "weight": 0.0, "options": {}},
        },
        "normalisation": "none",
    },
    "algorithm": {"name": "grpo", "options": {"clip_low": 0.2, "clip_high": 0.2}},
    "prompts": {"set": "signs", "train_count": 4096, "heldout_count": 32},
    "trainer": {"name": "default", "steps": 60, "group_size": 8},
}


def png(text: str, colour: str, rng: np.random.Generator) -> bytes:
    """PNG bytes of a sign."""
    buffer = io.BytesIO()
    Image.fromarray(render_sign(text, colour, rng)).save(buffer, "PNG")
    return buffer.getvalue()


def misread(text: str, accuracy: float, rng: np.random.Generator) -> str:
    """The text with each character wrong with probability 1 - accuracy."""
    return "".join(c if rng.random() < accuracy else str(rng.choice(list("8B5S2Z"))) for c in text)


def sample_rows(accuracy: float, count: int, group_size: int, images: int, seed: int, run_seed: int) -> list[dict]:
    """Rows of a rollouts or held-out table; `images` of them carry a picture."""
    rng = np.random.default_rng([seed, run_seed])
    split = "heldout" if group_size == 1 else "train"
    rows = []
    for number, prompt in enumerate(signs(split, count, seed=0)):
        colour = next(name for name in COLOURS if name in prompt.text)
        target = prompt.texts[0]
        for index in range(group_size):
            read = misread(target, accuracy, rng)
            right = sum(a == b for a, b in zip(read, target, strict=True)) / len(target)
            row = {"prompt_id": prompt.id, "prompt": prompt.text, "group": number, "index": index}
            row |= {"tokens": rng.integers(512, size=48).tolist(), "reward_ocr": right, "reward_colour": rng.random()}
            row |= {"metric_ocr_exact": float(read == target), "metric_ocr_char": right}
            row |= {"score": right, "failed": False, "advantage": right - accuracy, "read": read}
            row["image"] = png(read, colour, rng) if number < images else None
            rows.append(row)
    return rows


def write_table(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def metric_lines(steps: int, evaluations: dict[int, list[dict]], seed: int) -> list[dict]:
    """One object per step, step 0 with held-out figures alone."""
    rng = np.random.default_rng(seed)
    lines: list[dict] = []
    for step in range(steps + 1):
        line: dict[str, Any] = {"step": step}
        if step:
            progress = 1 - np.exp(-3 * step / steps)
            reward = 0.75 + 0.2 * progress + rng.normal(0, 0.02)
            times = {"sample": 0.43, "decode": 0.13, "reward": 0.37, "update": 0.42, "other": 0.03}
            times = {name: value * rng.uniform(0.9, 1.1) for name, value in times.items()}
            line |= {"reward": reward, "reward/ocr": reward, "reward/ocr_exact": reward**3, "reward/colour": 0.9}
            line |= {"approx_kl": 0.002 * rng.random(), "kl_reference": 0.05 * progress, "loss": rng.normal(0, 0.01)}
            line |= {"entropy": 0.95 - 0.1 * progress, "clip_fraction": 0.01 * rng.random(), "learning_rate": 3e-4}
            line |= {"ratio_max_deviation": 2e-6 * rng.random(), "logprob_max_delta": 2e-6 * rng.random()}
            line |= {"grad_norm": 0.8 + 0.3 * rng.random(), "zero_variance_share": 0.4 * progress, "failed_share": 0.0}
            line |= {"reward_std": 0.2, "alarm/zero_variance": float(step in (5, 9))}
            line["time"] = times | {"total": sum(times.values())}
            line["memory"] = {"peak_gib": 1.0 + 0.5 * progress}
        if step in evaluations:
            line["time"] = line.get("time", {}) | {"heldout": 6.0}
            rows = evaluations[step]
            line |= {f"heldout/{name}": float(np.mean([r[key] for r in rows])) for name, key in HELDOUT.items()}
        lines.append(line)
    return lines


HELDOUT = {"ocr": "reward_ocr", "ocr_exact": "metric_ocr_exact", "ocr_char": "metric_ocr_char"}


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """write_run(name, steps, seed, images, finished, alarms) → a run folder under the test's temporary folder."""

    def write(
        name: str = "run",
        *,
        steps: int = 20,
        seed: int = 0,
        images: int = 6,
        heldout: int = 12,
        finished: bool = True,
        alarms: bool = True,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"seed": seed}))
        at = (0, steps // 2, steps) if finished else (0,)
        accuracy = {0: 0.83, steps // 2: 0.92, steps: 0.97}
        evaluations = {step: sample_rows(accuracy[step], heldout, 1, images, step, seed) for step in at}
        for step, rows in evaluations.items():
            write_table(folder / "heldout" / f"step_{step:06d}.parquet", rows)
        write_table(folder / "rollouts" / f"step_{steps:06d}.parquet", sample_rows(0.9, 8, 4, images, steps, seed))
        lines = metric_lines(steps, evaluations, seed)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        manifest = {"commit": "0123456789abcdef+changes", "seeds": {"run": seed}, "packages": {"torch": "2.13.0"}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        if alarms:
            alarm = {
                "step": 5,
                "alarm": "zero_variance",
                "value": 0.9,
                "limit": 0.8,
                "message": "Most groups score alike: raise temperature.",
            }
            (folder / "alarms.jsonl").write_text(json.dumps(alarm) + "\n" + json.dumps(alarm | {"step": 9}) + "\n")
        if finished:
            figures = {step: {name: lines[step][f"heldout/{name}"] for name in HELDOUT} | {"step": float(step)} for step in at}
            summary = {"heldout": {"before": figures[0], "after": figures[steps], "best": figures[steps]}}
            summary |= {"train_seconds": 207.4, "steps": steps, "status": "finished", "alarms": {}}
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return write
