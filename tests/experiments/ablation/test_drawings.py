"""Curves, the grid of pictures and the page: real files, read back."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from xomni_rl.experiments.ablation import statistics
from xomni_rl.experiments.ablation.comparison import Comparison, compare
from xomni_rl.experiments.ablation.curves import curve_figure, panels, save
from xomni_rl.experiments.ablation.grids import first_seed, grid_rows, write_grid
from xomni_rl.experiments.ablation.outputs import write_comparison
from xomni_rl.experiments.report.data import ReportError

MakeRun = Callable[..., Path]
Groups = dict[str, list[Path]]
SIDES = {0: {"metric_ocr_exact": [0, 1]}, 10: {"metric_ocr_exact": [1, 1]}}


@pytest.fixture
def comparison(two_methods: Groups) -> Comparison:
    return compare(two_methods)


def test_panels_are_held_out_metrics_then_training_and_leave_rounding_out(comparison: Comparison) -> None:
    # approx_kl is 1e-12 throughout: nothing but rounding.
    assert [panel.key for panel in panels(comparison, "step")] == ["ocr_exact", "ocr_char", "reward", "entropy"]


@pytest.mark.parametrize(("axis", "last"), [("step", 20.0), ("seconds", 40.0), ("samples", 160.0)])
def test_curves_end_where_training_did_on_every_axis(comparison: Comparison, axis: str, last: float) -> None:
    # 20 steps of 2 s and 2 × 4 images.
    for panel in panels(comparison, axis):
        assert {curve.at[-1] for curve in panel.curves.values()} == {last}


def test_held_out_band_is_the_interval_of_the_table(comparison: Comparison) -> None:
    curve = panels(comparison, "step")[0].curves["gspo"]
    values = comparison.curves["gspo", "ocr_exact"][-1].values
    expected = statistics.mean(values)
    assert (curve.value[-1], curve.low[-1], curve.high[-1]) == (expected.value, expected.low, expected.high)


def test_training_band_goes_from_the_lowest_to_the_highest_seed(make_run: MakeRun) -> None:
    short, long = make_run("a", SIDES), make_run("b", {0: SIDES[0], 20: SIDES[10]}, seed=1)
    (reward,) = [panel for panel in panels(compare({"a": [short, long]}), "step") if panel.key == "reward"]
    curve = reward.curves["a"]
    # Rewards are step / last step: 1/10 and 1/20 at step 1; only the ten steps that both made are drawn.
    assert list(curve.at) == list(range(1, 11))
    assert (curve.low[0], curve.value[0], curve.high[0]) == pytest.approx((0.05, 0.075, 0.1))


def test_run_without_times_has_no_curves_against_seconds(make_run: MakeRun) -> None:
    folder = make_run("a", SIDES)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps({**line, "time": {}}) + "\n" for line in lines))
    found = compare({"a": [folder]})
    assert panels(found, "seconds") == []
    assert [panel.key for panel in panels(found, "step")] == ["ocr_exact", "reward", "entropy"]


def test_figure_has_axes_per_panel_and_a_line_per_method(comparison: Comparison) -> None:
    figure = curve_figure(comparison, "step")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["Held-out OCR exact match", "Held-out OCR character accuracy", "Training reward", "Entropy"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["grpo", "gspo"]


def test_grid_shows_the_first_prompts_with_pictures_for_every_method(comparison: Comparison) -> None:
    rows = grid_rows(comparison)
    assert [row.prompt for row in rows] == ["p sign 0", "p sign 1"]  # the pictures of two prompts were kept
    assert list(rows[0].samples) == ["before", "grpo", "gspo"]
    assert rows[0].samples["grpo"].read == "R0"
    assert len(grid_rows(comparison, most=1)) == 1


def test_grid_takes_the_first_seed_that_all_methods_have(make_run: MakeRun) -> None:
    groups = {"a": [make_run(f"a{s}", SIDES, seed=s) for s in (0, 1)], "b": [make_run(f"b{s}", SIDES, seed=s) for s in (2, 1)]}
    found = compare(groups)
    assert [first_seed(found, runs).seed for runs in found.methods.values()] == [1, 1]


def test_grid_is_a_picture_with_a_column_per_method(comparison: Comparison, tmp_path: Path) -> None:
    (path,) = write_grid(comparison, tmp_path / "grid.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = (pixels[..., 2] > pixels[..., 0] + 60).any(axis=0)  # the signs are blue
    edges = np.flatnonzero(np.diff(blue.astype(int)) == 1)
    assert len(edges) == 3  # before, grpo, gspo


def test_runs_without_pictures_have_no_grid(make_run: MakeRun, tmp_path: Path) -> None:
    assert write_grid(compare({"a": [make_run("a", SIDES, images=0)]}), tmp_path / "grid.png") == []


def test_all_files_are_written_and_nothing_else_is_left(two_methods: Groups, tmp_path: Path) -> None:
    out = tmp_path / "out" / "results"
    _, files = write_comparison(two_methods, out)
    curves = [f"curves_{axis}.{kind}" for axis in ("samples", "seconds", "step") for kind in ("png", "svg")]
    expected = ["comparison.html", *curves, "grid.png", "table.csv", "table.md", "table.tex"]
    assert sorted(path.name for path in out.iterdir()) == expected == sorted(path.name for path in files)
    for axis in ("step", "seconds", "samples"):
        with Image.open(out / f"curves_{axis}.png") as image:
            assert np.asarray(image.convert("L")).std() > 10  # something is drawn


def test_curves_and_grid_are_the_same_bytes_every_time(comparison: Comparison, tmp_path: Path) -> None:
    for name in "ab":
        save(curve_figure(comparison, "step"), tmp_path / name)
        write_grid(comparison, tmp_path / f"{name}_grid.png")
    for kind in (".svg", ".png", "_grid.png"):
        assert (tmp_path / f"a{kind}").read_bytes() == (tmp_path / f"b{kind}").read_bytes()


def test_folder_that_cannot_be_written_to_is_one_sentence(two_methods: Groups, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="cannot write the comparison to"):
        write_comparison(two_methods, tmp_path / "file" / "out")


@pytest.mark.parametrize("name", ["table.csv", "table.md", "grid.png", "curves_step.svg"])
def test_file_of_somebody_else_is_not_replaced(two_methods: Groups, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ReportError, match=rf"{name} would be replaced .* choose another folder"):
        write_comparison(two_methods, tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir() if path.is_file()] == [(name, "mine")]


def test_own_folder_with_other_files_beside_is_written_to_again(two_methods: Groups, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    write_comparison(two_methods, out)
    (out / "table.csv").write_text("old")
    write_comparison(two_methods, out)
    assert (out / "table.csv").read_text() != "old"
    assert (out / "notes.txt").read_text() == "mine"


class Page(HTMLParser):
    """Collects what a page asks for, and whether its elements close."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.plots: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.sources += [value for name in ("src", "href") if (value := found.get(name))]
        self.plots += [found["data-figure"] or ""] if "data-figure" in found else []
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_needs_nothing_from_elsewhere_and_every_plot_has_its_figure(two_methods: Groups, tmp_path: Path) -> None:
    write_comparison(two_methods, tmp_path)
    text = (tmp_path / "comparison.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert all(source.startswith("data:") for source in page.sources)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', text, re.DOTALL)[1])
    assert sorted(page.plots) == sorted(figures)
    assert len(page.plots) == 3 * 4  # axes × panels
    for figure in figures.values():
        go.Figure(figure)  # raises for what plotly does not know
    assert figures["samples-ocr_exact"]["layout"]["xaxis"]["title"]["text"] == "images generated in training"


def test_names_from_runs_stay_text_on_the_page(make_run: MakeRun, tmp_path: Path) -> None:
    write_comparison({"<script>alert(1)</script>": [make_run("a", SIDES, prefix="<b>")]}, tmp_path / "out")
    text = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script>alert" not in text
    assert "<b> sign" not in text
    assert "&lt;b&gt; sign 0" in text
