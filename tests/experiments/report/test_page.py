"""report.html: self-contained, safe with hostile prompts, complete, and built for unfinished runs too."""

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xomni_rl.experiments.report.data import Pair, ReportError, Sample
from xomni_rl.experiments.report.page import LARGEST_FILE, LARGEST_PICTURE, build_report, pair_counts, picture_uri

WriteRun = Callable[..., Path]
HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)> "K7AX" & {{ 7 * 7 }}'


class Page(HTMLParser):
    """The page as a browser's parser sees it: tags with attributes, script bodies, visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif not self._open or self._open[-1] != "style":
            self.text += data

    def every(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def parsed(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def hostile_run(folder: Path) -> Path:
    """A run whose prompt, reading, component and alarm names all try to break out."""
    buffer = io.BytesIO()
    Image.new("RGB", (96, 32), "red").save(buffer, "PNG")
    row = {"prompt_id": HOSTILE, "prompt": HOSTILE, "index": 0, "read": HOSTILE, "advantage": 0.5}
    row |= {f"reward_{HOSTILE}": 0.5, "image": buffer.getvalue()}
    for room in ("heldout", "rollouts"):
        (folder / room).mkdir()
        pq.write_table(pa.Table.from_pylist([row]), folder / room / "step_000000.parquet")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, f"reward/{HOSTILE}": 0.5}) + "\n")
    (folder / "alarms.jsonl").write_text(json.dumps({"step": 1, "alarm": HOSTILE, "message": HOSTILE}) + "\n")
    (folder / "manifest.json").write_text(json.dumps({"commit": HOSTILE}))
    return folder


def test_report_is_written_into_the_run_folder_or_where_asked(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run()
    assert build_report(folder) == folder / "report.html"
    assert build_report(folder, tmp_path / "other.html") == tmp_path / "other.html"
    assert not list(tmp_path.rglob("*.tmp"))


def test_report_refers_to_nothing_outside_itself(write_run: WriteRun) -> None:
    page = parsed(build_report(write_run()))
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    assert links
    assert all(str(link).startswith("data:") for link in links)
    policy = next(meta["content"] for meta in page.every("meta") if meta.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'")  # not even a mistake can reach the network


def test_plotly_is_embedded_once_and_every_plot_has_its_figure(write_run: WriteRun) -> None:
    page = parsed(build_report(write_run()))
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    figures = json.loads(page.scripts[0])
    wanted = [div["data-figure"] for div in page.every("div") if "data-figure" in div]
    assert sorted(map(str, wanted)) == sorted(figures)
    assert {"reward", "heldout", "kl", "entropy", "clip_fraction", "exactness", "grad_norm", "time"} <= set(figures)


def test_headline_shows_before_and_after_of_exact_and_character_accuracy(write_run: WriteRun) -> None:
    folder = write_run()
    heldout = json.loads((folder / "summary.json").read_text())["heldout"]
    text = " ".join(parsed(build_report(folder)).text.split())
    for name, label in (("ocr_exact", "OCR exact match"), ("ocr_char", "OCR character accuracy")):
        before, after = (100 * heldout[side][name] for side in ("before", "after"))
        assert f"Held-out {label} {before:.1f} % → {after:.1f} %" in text


def test_held_out_prompts_are_shown_at_every_evaluation_marked_by_what_was_read(write_run: WriteRun) -> None:
    folder = write_run(images=6)
    page = parsed(build_report(folder))
    shots = [str(figure.get("class")) for figure in page.every("figure") if "shot" in str(figure.get("class"))]
    rows = [pq.read_table(folder / "heldout" / f"step_{step:06d}.parquet").to_pylist()[:6] for step in (0, 10, 20)]
    expected = [row["metric_ocr_exact"] == 1.0 for seen in zip(*rows, strict=True) for row in seen]
    assert [("right" in shot) for shot in shots[:18]] == expected
    assert [div["data-step"] for div in page.every("div") if "data-step" in div][:3] == ["0", "10", "20"]
    assert all(row["read"] in page.text for side in rows for row in side)


def test_hacked_reward_is_among_the_alarms(write_run: WriteRun) -> None:
    folder = write_run(steps=100)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    worse = [line | ({"reward/colour": 0.9 - line["step"] / 200} if line["step"] else {}) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in worse))
    text = " ".join(parsed(build_report(folder)).text.split())
    assert "hacking from step" in text
    assert "the training score of colour, which is not trained on, got worse" in text
    assert "hacking from step" not in parsed(build_report(write_run("calm", steps=100))).text


def test_run_with_nothing_only_logged_is_said_not_to_be_judged(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("reward: {components: {ocr: {weight: 1.0}}}\n")
    assert "Hacking cannot be judged here" in parsed(build_report(tmp_path)).text


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    path = build_report(hostile_run(tmp_path))
    page = parsed(path)
    assert len(page.scripts) == 3  # figures, plotly, the page's own
    assert not any("alert" in script for script in page.scripts[2:])
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert HOSTILE in page.text
    assert HOSTILE in json.loads(page.scripts[0])["components"]["data"][0]["name"]


def test_only_scripts_with_the_nonce_run(write_run: WriteRun) -> None:
    page = parsed(build_report(write_run()))
    policy = next(str(meta["content"]) for meta in page.every("meta") if meta.get("http-equiv"))
    match = re.search(r"script-src 'nonce-([\w-]+)'$", policy)
    assert match
    scripts = page.every("script")
    assert [script.get("nonce") for script in scripts if script.get("type") is None] == [match[1]]


@pytest.mark.parametrize("removed", ["summary.json", "manifest.json", "heldout", "rollouts", "metrics.jsonl"])
def test_missing_part_still_gives_a_report(write_run: WriteRun, removed: str) -> None:
    folder = write_run()
    (folder / removed).rename(folder / "elsewhere")
    assert "Record" in parsed(build_report(folder)).text


def test_run_before_its_first_step_gives_a_report(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    text = parsed(build_report(tmp_path)).text
    assert "No held-out evaluation yet." in text
    assert "no summary yet" in text


def test_run_without_pictures_has_no_grid(write_run: WriteRun) -> None:
    page = parsed(build_report(write_run(images=0)))
    assert "over training" not in page.text
    assert not page.every("img")


def test_config_and_manifest_are_there_in_full_and_folded(write_run: WriteRun) -> None:
    page = parsed(build_report(write_run()))
    assert len(page.every("details")) == 2
    assert all("open" not in details for details in page.every("details"))
    assert "clip_low: 0.2" in page.text
    assert '"commit": "0123456789abcdef+changes"' in page.text
    assert "0123456789+changes" in page.text


def test_small_picture_is_embedded_byte_for_byte_and_large_one_reduced() -> None:
    def uri(height: int, width: int) -> tuple[bytes, str]:
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
        sample = Sample("a", "p", 0, 1.0, {}, {}, 0.0, None, buffer.getvalue())
        return buffer.getvalue(), picture_uri(sample)

    content, small = uri(32, 96)
    assert small == "data:image/png;base64," + base64.b64encode(content).decode()
    _, large = uri(512, 1024)
    with Image.open(io.BytesIO(base64.b64decode(large.removeprefix("data:image/jpeg;base64,")))) as image:
        assert image.size == (LARGEST_PICTURE, LARGEST_PICTURE // 2)


def test_bytes_that_are_no_picture_are_left_out(write_run: WriteRun) -> None:
    folder = write_run(images=2)
    for path in (folder / "heldout").iterdir():
        rows = pq.read_table(path).to_pylist()
        pq.write_table(pa.Table.from_pylist([row | {"image": b"not a picture"} for row in rows]), path)
    assert "before and after" not in parsed(build_report(folder)).text


def test_pairs_are_counted_by_what_became_of_them() -> None:
    def sample(exact: float) -> Sample:
        return Sample("a", "p", 0, exact, {}, {"ocr_exact": exact}, 0.0, None, None)

    pairs = [Pair("p", sample(a), sample(b)) for a, b in ((0, 1), (0, 1), (1, 0), (1, 1))]
    assert pair_counts(pairs) == {"became right": 2, "went wrong": 1, "stayed right": 1, "stayed wrong": 0}
    assert pair_counts([Pair("p", sample(1), None)]) is None


def test_folder_that_is_no_run_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ReportError):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_large_file_of_a_small_picture_is_reduced_too() -> None:
    # Noise does not compress: 200 × 200 × 3 bytes as PNG are more than 48 KiB.
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(200, 200, 3), dtype=np.uint8)).save(buffer, "PNG")
    assert len(buffer.getvalue()) > LARGEST_FILE
    assert picture_uri(Sample("a", "p", 0, 1.0, {}, {}, 0.0, None, buffer.getvalue())).startswith("data:image/jpeg;")


@pytest.mark.parametrize(("folder", "title"), [("grpo/0", "grpo/0"), ("runs/seed0", "seed0")])
def test_run_named_by_its_seed_alone_is_titled_with_its_parent(
    write_run: WriteRun, tmp_path: Path, folder: str, title: str
) -> None:
    (tmp_path / folder).parent.mkdir()
    assert f"{title} – xomni-rl run report" in parsed(build_report(write_run(folder))).text
