"""Writes run folders of the documented form with chosen held-out scores: real files, real pictures, no training."""

import copy
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from xomni_rl.prompt_sets.signs import render_sign

MakeRun = Callable[..., Path]

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"path": "embedded"},
    "reward": {"components": {"ocr": {"reward": "ocr", "weight": 1.0}}, "gates": {}},
    "algorithm": {"name": "grpo", "options": {"clip_low": 0.2}},
    "prompts": {"set": "signs", "heldout_count": 4},
    "trainer": {
        "name": "default",
        "steps": 20,
        "prompts_per_step": 2,
        "group_size": 4,
        "learning_rate": 1e-4,
        "evaluation": {"seed": 1234, "reward": None, "grid_prompts": 2, "batch_size": 64},
    },
}
MANIFEST: dict[str, Any] = {
    "commit": "0123456789abcdef",
    "packages": {"torch": "2.13.0"},
    "python": "3.11",
    "platform": "Linux",
    "torch_threads": 1,
    "weights": {"autoregressive": "a" * 64, "decoder": "d" * 64},
    "prompts": {"train": {"sha256": "0" * 64}, "heldout": {"sha256": "1" * 64}},
}


def png(text: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render_sign(text, "blue")).save(buffer, "PNG")
    return buffer.getvalue()


def heldout_rows(scores: Mapping[str, Sequence[float]], images: int, prefix: str) -> list[dict[str, Any]]:
    rows = []
    for number, values in enumerate(zip(*scores.values(), strict=True)):
        row: dict[str, Any] = {"prompt_id": f"{prefix}{number}", "prompt": f"{prefix} sign {number}", "index": 0}
        row |= dict(zip(scores, values, strict=True)) | {"read": f"R{number}", "score": 0.0}
        rows.append(row | {"image": png(f"K{number}") if number < images else None})
    return rows


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with dotted keys set."""
    made = copy.deepcopy(dict(base))
    for key, value in changes.items():
        *groups, last = key.split(".")
        target = made
        for group in groups:
            target = target[group]
        target[last] = value
    return made


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(name, {step: {column: [values]}}, seed=, config={dotted: value}, manifest={…}, …) → a run folder."""

    def make(
        name: str,
        scores: Mapping[int, Mapping[str, Sequence[float]]],
        *,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        manifest: Mapping[str, Any] | None = None,
        seconds: float = 2.0,
        images: int = 2,
        status: str | None = "finished",
        prefix: str = "p",
        checks: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Path:
        folder = tmp_path / name
        (folder / "heldout").mkdir(parents=True)
        for step, columns in scores.items():
            table = pa.Table.from_pylist(heldout_rows(columns, images, prefix))
            pq.write_table(table, folder / "heldout" / f"step_{step:06d}.parquet")
        last = max(scores)
        lines = [{"step": 0, "time": {"heldout": 5.0, "total": 5.0}}]
        for step in range(1, last + 1):
            time = {"sample": seconds / 2, "update": seconds / 2, "heldout": 5.0, "total": seconds + 5.0}
            lines.append(
                {"step": step, "reward": step / last, "entropy": 1.0, "approx_kl": 1e-12, "time": time, **(metrics or {})}
            )
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        made = merged(CONFIG, {"seed": seed, **(config or {})})
        (folder / "config.yaml").write_text(yaml.safe_dump(made | {"run": str(folder), "resume": None}))
        (folder / "manifest.json").write_text(json.dumps(merged(MANIFEST, manifest or {})))
        if status:
            (folder / "summary.json").write_text(json.dumps({"status": status, "steps": last}))
        if checks:
            (folder / "reward_checks.json").write_text(json.dumps(checks))
        return folder

    return make


@pytest.fixture
def two_methods(make_run: MakeRun) -> dict[str, list[Path]]:
    """Two methods with two seeds each, four prompts, evaluated at steps 0, 10 and 20.

    Exact match: 1/4 before; grpo ends at 2/4 and 3/4, gspo at 3/4 and 4/4. `ocr` repeats `ocr_char` in all of them.
    """
    ends = {"grpo": ([1, 1, 0, 0], [1, 1, 1, 0]), "gspo": ([1, 1, 1, 0], [1, 1, 1, 1])}
    made: dict[str, list[Path]] = {}
    for name, found in ends.items():
        for seed, end in enumerate(found):
            middle = [1, 1, 0, 0]
            scores = {
                step: {"metric_ocr_exact": exact, "metric_ocr_char": char, "reward_ocr": char}
                for step, exact, char in (
                    (0, [1, 0, 0, 0], [1.0, 0.5, 0.5, 0.25]),
                    (10, middle, [1.0, 1.0, 0.5, 0.5]),
                    (20, end, [1.0, 1.0, 0.5 + 0.5 * end[2], 0.5 + 0.25 * seed]),
                )
            }
            made.setdefault(name, []).append(make_run(f"{name}/{seed}", scores, seed=seed, config={"algorithm.name": name}))
    return made
