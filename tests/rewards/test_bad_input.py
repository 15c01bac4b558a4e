"""Odd pictures and prompts, as a user gives them: through `xomni-rl score`, `audit` and `serve`."""

import base64
import csv
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from xomni_rl.cli import app
from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.rewards.clip import ClipReward
from xomni_rl.rewards.composite import build_composite
from xomni_rl.rewards.server import BackgroundServer
from xomni_rl.rewards.service import Service, local_scorers
from xomni_rl.rewards.wire import Limits

TEXT = 'a blue sign that says "K7AX"'
SIGN = Image.fromarray(render_sign("K7AX", "blue"))


def clear(picture: Image.Image) -> Image.Image:
    """With a letter's worth of transparent ground: what is under it shows white."""
    made = picture.convert("RGBA")
    made.putalpha(Image.fromarray(np.where(np.arange(96) < 8, 0, 255).astype(np.uint8)[None].repeat(32, axis=0)))
    return made


def on_its_side() -> Image.Exif:
    made = Image.Exif()
    made[274] = 6  # orientation: to be turned by 90° clockwise
    return made


PICTURES: dict[str, Callable[[Path], None]] = {
    "rgb.png": lambda path: SIGN.save(path),
    "grey.png": lambda path: SIGN.convert("L").save(path),
    "grey_alpha.png": lambda path: SIGN.convert("LA").save(path),
    "rgba.png": lambda path: clear(SIGN).save(path),
    "palette.png": lambda path: SIGN.convert("P").save(path),
    "bilevel.png": lambda path: SIGN.convert("1").save(path),
    "sixteen_bit.png": lambda path: Image.fromarray(np.asarray(SIGN.convert("L")).astype(np.uint16) * 257).save(path),
    "cmyk.jpg": lambda path: SIGN.convert("CMYK").save(path, quality=95),
    "exif.jpg": lambda path: SIGN.rotate(90, expand=True).save(path, quality=95, exif=on_its_side()),
    "large.webp": lambda path: SIGN.resize((480, 160)).save(path, lossless=True),
    "small.png": lambda path: SIGN.resize((72, 24)).save(path),
}
"""Pictures of one sign: each is read as K7AX whatever its mode, size and orientation."""


def empty_png(width: int, height: int) -> bytes:
    """A PNG whose header states that size, without a pixel in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    chunks = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `odd` with the pictures and their prompts."""
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "odd"
    odd.mkdir()
    for name, save in PICTURES.items():
        save(odd / name)
    write_prompts(odd, [{"id": name.partition(".")[0], "text": TEXT} for name in PICTURES])
    return odd


def write_prompts(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "250"})
    assert "Traceback" not in done.output
    return done


def score(*arguments: str) -> Result:
    return run("score", "odd", "--reward", "ocr", "--option", "ocr.layout=line", "--reward", "contrast", *arguments)


def table() -> dict[str, dict[str, str]]:
    """File → row of the table."""
    return {row["file"]: row for row in csv.DictReader(Path("odd/scores.csv").read_text().splitlines())}


def counts(output: str, reward: str) -> list[int]:
    """Scored, not applicable and failed, as printed for a reward."""
    [line] = [line for line in output.splitlines() if re.match(rf"│ {reward} ", line)]
    return [int(cell) for cell in line.strip("│ ").split("│")[-3:]]


# pictures


def test_pictures_of_every_mode_size_and_orientation_are_scored_in_one_go(folder: Path) -> None:
    done = score()
    assert done.exit_code == 0, done.output
    assert counts(done.output, "ocr") == [len(PICTURES), 0, 0]
    assert {name: row["ocr_read"] for name, row in table().items()} == dict.fromkeys(PICTURES, "K7AX")
    assert {name: float(row["ocr"]) for name, row in table().items()} == dict.fromkeys(PICTURES, 1.0)


def test_pictures_of_every_mode_and_size_are_audited(folder: Path) -> None:
    done = run("audit", "reward=contrast", "--images", "odd", "--count", "99", "--out", "audit")
    assert done.exit_code == 0, done.output
    found = json.loads(Path("audit/audit.json").read_text())
    assert found["samples"] == len(PICTURES)
    [clean] = [effect for effect in found["effects"] if effect["perturbation"] == "clean"]
    assert (clean["scored"], clean["failed"]) == (len(PICTURES), 0)


def test_served_pictures_score_as_those_of_a_folder(folder: Path) -> None:
    score()
    wanted = {name: [float(row["ocr"]), float(row["contrast"])] for name, row in table().items()}
    reward = build_composite({"components": {"ocr": {"options": {"layout": "line"}}, "contrast": {}}})
    entries = [
        {"history": [{"text": TEXT, "image_b64": base64.b64encode((folder / name).read_bytes()).decode()}]} for name in PICTURES
    ]
    with BackgroundServer(Service(local_scorers(reward), Limits())) as server:
        answer = httpx.post(f"{server.url}/score", json={"requests": entries}, timeout=60, trust_env=False).json()
    found = {
        name: [result["ocr"]["score"], result["contrast"]["score"]]
        for name, result in zip(PICTURES, answer["results"], strict=True)
    }
    for name, scores in wanted.items():
        assert found[name] == pytest.approx(scores, abs=1e-6), name


@pytest.mark.parametrize("content", [b"", empty_png(0, 4), empty_png(0, 0)], ids=["no bytes", "0 × 4 px", "0 × 0 px"])
def test_picture_without_pixels_is_named_and_the_others_are_scored(folder: Path, content: bytes) -> None:
    (folder / "grey.png").write_bytes(content)
    done = score()
    assert done.exit_code == 1
    assert "grey.png: is not an image that can be read" in done.output
    assert counts(done.output, "ocr") == [len(PICTURES) - 1, 0, 1]
    assert table()["grey.png"]["ocr"] == ""
    audited = run("audit", "reward=contrast", "--images", "odd", "--count", "99", "--out", "audit")
    assert (audited.exit_code, "grey.png: is not an image that can be read" in audited.output) == (1, True)


# prompts


def test_empty_prompt_is_named_with_its_line(folder: Path) -> None:
    rows = [{"id": name.partition(".")[0], "text": TEXT} for name in PICTURES]
    write_prompts(folder, [*rows[:3], rows[3] | {"text": "  "}, *rows[4:]])
    for done in (score(), run("audit", "reward=contrast", "--images", "odd")):
        assert done.exit_code == 1
        assert "prompts.jsonl:4: text must not be empty" in done.output


def test_prompts_without_the_facts_that_a_reward_needs_are_counted_as_not_applicable(folder: Path) -> None:
    rows = [{"id": name.partition(".")[0], "text": TEXT if name == "rgb.png" else "a street"} for name in PICTURES]
    write_prompts(folder, rows)
    done = score("--reward", "rules")
    assert done.exit_code == 0, done.output
    assert counts(done.output, "ocr") == [1, len(PICTURES) - 1, 0]
    assert counts(done.output, "contrast") == [len(PICTURES), 0, 0]
    assert counts(done.output, "rules") == [0, len(PICTURES), 0]
    assert table()["grey.png"]["ocr"] == ""
    assert table()["grey.png"]["ocr_reason"] == "the prompt asks for no text"
    assert table()["rgb.png"]["rules_reason"] == "the prompt has no checks"
    audited = run("audit", "reward=ocr", "reward.components.ocr.options.layout=line", "--images", "odd", "--count", "99")
    assert audited.exit_code == 0, audited.output
    effects = json.loads(Path("audit/audit.json").read_text())["effects"]
    [blur] = [each for each in effects if (each["perturbation"], each["grade"]) == ("blur", 1)]
    assert (blur["scored"], blur["not_applicable"], blur["failed"]) == (1, len(PICTURES) - 1, 0)


@pytest.mark.parametrize(
    ("more", "less", "sentence"),
    [
        ([{"id": "extra", "text": TEXT}], 0, "prompts without an image: extra"),
        ([], 1, "images whose name is no prompt id: small.png"),
    ],
)
def test_more_prompts_than_images_and_more_images_than_prompts_are_named(
    folder: Path, more: list[dict[str, Any]], less: int, sentence: str
) -> None:
    rows = [{"id": name.partition(".")[0], "text": TEXT} for name in PICTURES]
    write_prompts(folder, rows[: len(rows) - less] + more)
    for done in (score(), run("audit", "reward=contrast", "--images", "odd")):
        assert done.exit_code == 1
        assert sentence in " ".join(done.output.split())
    assert not (folder / "scores.csv").exists()


# models


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Any]:
    """Options of `clip` on a model that gives NaN for every image."""
    options = ClipReward.write_tiny(tmp_path)
    tensors = load_file(options["weights"])
    tensors["visual.proj"][:] = float("nan")
    save_file(tensors, options["weights"])
    return options


def test_nan_out_of_a_model_fails_every_image_and_is_no_score(folder: Path, broken: dict[str, Any]) -> None:
    options = [part for key, value in broken.items() for part in ("--option", f"clip.{key}={value}")]
    done = score("--reward", "clip", *options)
    assert done.exit_code == 1
    assert counts(done.output, "clip") == [0, 0, len(PICTURES)]
    assert counts(done.output, "ocr") == [len(PICTURES), 0, 0]
    assert {row["clip"] for row in table().values()} == {""}
    assert "the model gave a score that is not a number" in table()["rgb.png"]["error"]


def test_nan_out_of_a_model_is_flagged_and_stops_training_before_it_begins(folder: Path, broken: dict[str, Any]) -> None:
    overrides = ["reward=clip", *(f"+reward.components.clip.options.{key}={value}" for key, value in broken.items())]
    examined = run("doctor", *overrides)
    assert examined.exit_code == 1
    assert "the model gave a score that is not a number" in " ".join(examined.output.replace("│", " ").split())
    audited = run("audit", *overrides, "--images", "odd", "--count", "4", "--out", "audit")
    assert audited.exit_code == 0, audited.output
    assert re.search(r"clip: failed on \d+ of \d+ pictures, and scored none", audited.output)
    trained = run("train", *overrides, "run=mine")
    assert trained.exit_code == 1
    assert 'error: reward "clip" fails on the good image: the model gave a score' in trained.output
    assert not Path("mine").exists()
