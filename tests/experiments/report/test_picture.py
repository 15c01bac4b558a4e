"""The README's picture: pairs before and after, and the held-out curve."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xomni_rl.experiments.report.data import ReportError
from xomni_rl.experiments.report.picture import main, readme_picture

WriteRun = Callable[..., Path]


def test_readme_picture_shows_pairs_and_curve(write_run: WriteRun, tmp_path: Path) -> None:
    folders = [write_run(f"seed{seed}", seed=seed, images=16, heldout=16) for seed in range(2)]
    path = readme_picture(folders, tmp_path / "docs" / "readme.png")
    with Image.open(path) as image:
        assert image.width >= 1600  # sharp on a high-density screen
        assert np.asarray(image.convert("L")).std() > 10  # something is drawn
    assert not list(path.parent.glob("*.tmp"))


def test_picture_of_a_run_without_pictures_is_refused(write_run: WriteRun, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no held-out pictures"):
        readme_picture([write_run(images=0)], tmp_path / "readme.png")


def test_prompt_with_dollar_signs_is_drawn_as_it_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 32), "red").save(buffer, "PNG")
    row = {"prompt_id": "a", "prompt": 'a sign "$\\frac$5"', "index": 0, "metric_ocr_exact": 1.0, "metric_ocr_char": 1.0}
    row |= {"read": "$x_$", "image": buffer.getvalue()}
    (tmp_path / "heldout").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    for step in (0, 1):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "heldout" / f"step_{step:06d}.parquet")
    assert readme_picture([tmp_path], tmp_path / "readme.png").exists()


def test_command_prints_the_path_or_one_sentence(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.png"
    assert main([str(write_run()), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert main([str(tmp_path / "nowhere"), "--out", str(out)]) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err
