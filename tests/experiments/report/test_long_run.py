"""A run of 10,000 steps: the size of its page, and how long it takes to open, as a command.

`python -m tests.experiments.report.test_long_run FOLDER` writes such a run with its page into FOLDER and times Chromium.
"""

import io
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from tests.experiments.report.conftest import CONFIG, metric_lines
from xomni_rl.experiments.report.page import build_report

STEPS, EVERY, PROMPTS = 10_000, 250, 64
LARGEST = 20 * 1024 * 1024


def noise(rng: np.random.Generator) -> bytes:
    """A picture of 512 × 512 that no format compresses well."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(256, size=(512, 512, 3), dtype=np.uint8)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def write_long_run(folder: Path) -> Path:
    """Metrics of every step, a table of rollouts for each, an evaluation every 250 steps with 16 pictures of the worst kind."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    rng = np.random.default_rng(0)
    pictures = [noise(rng) for _ in range(8)]
    rows = [
        {"prompt_id": f"p{n}", "prompt": f"prompt {n}", "index": 0, "reward_ocr": 0.5, "reward_colour": 0.5}
        for n in range(PROMPTS)
    ]
    rows = [row | {"metric_ocr_exact": 0.0, "metric_ocr_char": 0.5, "score": n / PROMPTS} for n, row in enumerate(rows)]
    evaluations = dict.fromkeys(range(0, STEPS + 1, EVERY), rows)
    shown = [
        row | {"read": "K7AX", "advantage": 0.1, "image": pictures[n % 8] if n < 16 else None} for n, row in enumerate(rows)
    ]
    table = pa.Table.from_pylist(shown)
    for room in ("heldout", "rollouts"):
        (folder / room).mkdir()
    whole, plain = (folder / name for name in ("whole", "plain"))
    pq.write_table(table, whole)
    pq.write_table(pa.table({"advantage": rng.normal(size=64)}), plain)
    for step in evaluations:
        shutil.copy(whole, folder / "heldout" / f"step_{step:06d}.parquet")
    for step in range(1, STEPS + 1):
        shutil.copy(plain if step < STEPS else whole, folder / "rollouts" / f"step_{step:06d}.parquet")
    lines = metric_lines(STEPS, evaluations, seed=0)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"status": "finished", "steps": STEPS}))
    return folder


def test_page_of_ten_thousand_steps_stays_under_twenty_megabytes(tmp_path: Path) -> None:
    size = build_report(write_long_run(tmp_path / "run")).stat().st_size
    assert size < LARGEST
    assert size > 5 * 1024 * 1024  # plotly alone is nearly that: the pictures are there


def opening_seconds(page: Path, chromium: str) -> tuple[float, float]:
    """From the request until the page is loaded, and until plotly is ready to draw what is scrolled to."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.goto("about:blank")
        began = time.perf_counter()
        tab.goto(page.resolve().as_uri())
        loaded = time.perf_counter() - began
        while not tab.evaluate("Boolean(window.Plotly)"):
            tab.wait_for_timeout(10)
        ready = time.perf_counter() - began
        browser.close()
    return loaded, ready


if __name__ == "__main__":
    from tests.experiments.report.test_browser import CHROMIUM

    run = Path(sys.argv[1]) / "run"
    written = build_report(run if run.exists() else write_long_run(run))
    loaded, ready = np.median([opening_seconds(written, str(CHROMIUM)) for _ in range(5)], axis=0)
    print(f"{written.stat().st_size / 2**20:.1f} MiB, loaded in {loaded:.2f} s, plotly ready at {ready:.2f} s (medians of 5)")
