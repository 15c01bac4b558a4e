"""The page: what is in it, that what it shows stays text, and what a browser makes of it."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xomni_rl.experiments.scoring import FolderScores, ScoringError, score_folder
from xomni_rl.experiments.scoring import gallery as module

EVIL = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


def entries(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'id="entries">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    read: list[dict[str, Any]] = json.loads(found[1])
    return read


def scored(folders: Any, tmp_path: Path, rewards: tuple[str, ...] = ("contrast",)) -> FolderScores:
    return score_folder(folders, None, rewards, tmp_path / "s.csv", gallery=tmp_path / "s.html")


def dom(page: Path) -> str:
    """What a browser has made of the page; fails on an error in its script."""
    assert CHROMIUM is not None
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"]
    done = subprocess.run([*words, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def test_small_page_is_one_file_with_every_picture_score_and_reading(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    scores = scored(make_folder(count=3), tmp_path, ("contrast", "ocr"))
    assert scores.gallery == tmp_path / "s.html"
    found = entries(tmp_path / "s.html")
    assert [entry["f"] for entry in found] == ["p0.png", "p1.png", "p2.png"]
    table = scores.table
    assert [entry["s"][0] for entry in found] == table["contrast"].tolist()
    assert all(entry["src"].startswith("data:image/png;base64,") for entry in found)
    assert all(entry["d"]["contrast_mean_luma"] for entry in found)
    assert sorted(path.name for path in tmp_path.glob("s*")) == ["s.csv", "s.html"]


def test_untrusted_text_stays_text(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder(count=1)
    (folder / "prompts.jsonl").write_text(json.dumps({"id": "p0", "text": EVIL}))
    scored(folder, tmp_path)
    html = (tmp_path / "s.html").read_text()
    assert EVIL not in html
    assert html.count("<script") == 3  # settings, entries, the page's own
    assert entries(tmp_path / "s.html")[0]["p"] == EVIL
    assert "default-src 'none'" in html


def test_large_pictures_are_reduced_and_odd_formats_converted(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder(count=2)
    Image.fromarray(np.zeros((900, 1200, 3), np.uint8)).save(folder / "p0.png")
    (folder / "p1.png").unlink()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "p1.tif")
    scored(folder, tmp_path)
    found = entries(tmp_path / "s.html")
    assert [entry["src"].partition(";")[0] for entry in found] == ["data:image/jpeg", "data:image/jpeg"]
    assert found[0]["size"] == "1200 × 900"


def test_large_gallery_is_a_folder_that_replaces_only_its_own_kind(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ONE_FILE", 4)
    folder = make_folder(count=5)
    Image.fromarray(np.zeros((400, 500, 3), np.uint8)).save(folder / "p0.png")
    (folder / "p4.png").write_bytes(b"no picture")
    page = scored(folder, tmp_path).gallery
    assert page == tmp_path / "s_gallery" / "index.html"
    found = entries(page)
    assert [entry.get("src") for entry in found][3:] == ["images/000/0000003.png", None]
    assert [entry.get("thumb") for entry in found][:2] == ["thumbnails/000/0000000.jpg", None]
    assert Image.open(page.parent / found[0]["thumb"]).size == (320, 256)
    assert (page.parent / found[1]["src"]).read_bytes() == (folder / "p1.png").read_bytes()
    assert scored(folder, tmp_path).gallery == page
    (page.parent / "mine.txt").write_text("keep")
    with pytest.raises(ScoringError, match=r"with it mine\.txt; move that away"):
        scored(folder, tmp_path)
    assert (page.parent / "mine.txt").exists()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_that_looks_like_a_gallery_but_is_the_users_is_left_alone_before_anything_is_scored(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ONE_FILE", 1)
    folder = make_folder(count=2)
    make_folder("s_gallery", 0)
    (tmp_path / "s_gallery" / "prompts.jsonl").unlink()
    shutil.copytree(folder, tmp_path / "s_gallery" / "images")
    before = files_of(tmp_path)
    with pytest.raises(ScoringError, match="s_gallery: is there already and is no gallery; give another name with --gallery"):
        scored(folder, tmp_path)
    assert files_of(tmp_path) == before


def test_gallery_never_takes_the_place_of_the_images_it_shows(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ONE_FILE", 1)
    page = scored(make_folder(count=2), tmp_path).gallery
    assert page is not None
    before = files_of(tmp_path)
    with pytest.raises(ScoringError, match=r"s_gallery: the gallery would replace the images in .*images/000"):
        score_folder(page.parent / "images" / "000", None, ["contrast"], tmp_path / "t.csv", gallery=tmp_path / "s.html")
    assert files_of(tmp_path) == before


def test_gallery_among_the_images_is_not_scored_with_them(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ONE_FILE", 1)
    folder = make_folder(count=0)
    (folder / "prompts.jsonl").unlink()
    for name in ("a", "b"):
        (make_folder(f"images/{name}", 2) / "prompts.jsonl").unlink()
    tables = [
        score_folder(folder, None, ["contrast"], folder / "scores.csv", gallery=folder / "scores.html").table["file"].tolist()
        for _ in range(2)
    ]
    assert tables == [["a/p0.png", "a/p1.png", "b/p0.png", "b/p1.png"]] * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s.png", r"s\.png: a gallery is an \.html file"),
        ("taken.html", r"taken\.html: is a folder; give another name with --gallery"),
        ("file/s.html", r"s\.html: cannot be written: (Not a directory|File exists)"),
    ],
)
def test_page_that_could_not_be_written_is_refused_before_anything_is_scored(
    name: str, message: str, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "taken.html").mkdir()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ScoringError, match=message):
        score_folder(make_folder(count=1), None, ["contrast"], tmp_path / "s.csv", gallery=tmp_path / name)
    assert not (tmp_path / "s.csv").exists()


def test_folder_of_the_page_is_made(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    page = tmp_path / "deep" / "er" / "s.html"
    assert score_folder(make_folder(count=1), None, ["contrast"], tmp_path / "s.csv", gallery=page).gallery == page
    assert page.exists()


@in_a_browser
def test_browser_shows_cards_of_both_models_side_by_side_without_a_complaint(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [make_folder("a", 3), make_folder("b", 3, contrast=0.5)]
    (folders[0] / "prompts.jsonl").write_text(
        "\n".join(json.dumps({"id": f"p{index}", "text": f"{EVIL} {index}"}) for index in range(3))
    )
    score_folder(folders, folders[0] / "prompts.jsonl", ["contrast"], tmp_path / "s.csv", gallery=tmp_path / "s.html")
    shown = dom(tmp_path / "s.html")
    assert shown.count('<article class="card">') == 3
    assert shown.count("chip best") == 3  # a's contrast is the higher one for every prompt
    assert "3 of 3 prompts" in shown
    assert "<title>6 scored images" in shown


@in_a_browser
def test_browser_shows_the_pictures_of_a_folder(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ONE_FILE", 1)
    page = scored(make_folder(count=2), tmp_path).gallery
    assert page is not None
    shown = dom(page)  # a picture that its policy keeps out would be a complaint
    assert shown.count('<article class="card">') == 2
