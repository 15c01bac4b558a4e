"""Signs from the embedded stack and from folders: resumed, compared, with failures counted."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from xomni_rl.experiments.evaluation.errors import EvaluationError
from xomni_rl.experiments.evaluation.journal import Journal
from xomni_rl.experiments.evaluation.pictures import KEY, Drawing, draw_images
from xomni_rl.experiments.evaluation.run import Evaluation, evaluate, labels_of
from xomni_rl.experiments.evaluation.show import show
from xomni_rl.experiments.evaluation.suite import Suite, build_suite, samples_of, suites
from xomni_rl.experiments.statistics import mean_interval, paired_difference
from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.registry import UnknownNameError
from xomni_rl.stack.stack import Stack

COUNT = 6


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack.from_pretrained("embedded")


@pytest.fixture
def suite() -> Suite:
    return build_suite("signs", {"prompts": COUNT})


def no_stack(place: str) -> Stack:
    raise AssertionError(f"{place} was taken for a stack")


def as_asked(prompt: Prompt, _number: int) -> np.ndarray:
    return render_sign(prompt.texts[0], prompt.checks[0]["colour"])


def wrong_colour(prompt: Prompt, _number: int) -> np.ndarray:
    return render_sign(prompt.texts[0], "red" if prompt.checks[0]["colour"] != "red" else "blue")


def wrong_text(prompt: Prompt, _number: int) -> np.ndarray:
    return render_sign("", prompt.checks[0]["colour"])


def of_folder(suite: Suite, folder: Path, out: Path, drawing: Drawing) -> Evaluation:
    return evaluate(suite, {"images": str(folder)}, out, drawing, no_stack)


def means(found: Evaluation, model: str = "images") -> dict[str, float]:
    return {name: cell["mean"] for name, cell in found.summary["models"][model].items()}


def test_signs_as_asked_are_right_in_everything(tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable):
    found = of_folder(suite, rendered(suite, suite.prompts(None), 1, tmp_path / "good", as_asked), tmp_path / "out", drawing)
    assert set(means(found).values()) == {1.0}
    assert found.complete


@pytest.mark.parametrize(
    ("picture", "wrong"),
    [(wrong_colour, {"instruction"}), (wrong_text, {"exact", "characters", "second exact", "second characters"})],
)
def test_each_figure_sees_what_is_wrong(
    tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable, picture: Callable, wrong: set[str]
):
    found = of_folder(suite, rendered(suite, suite.prompts(None), 1, tmp_path / "bad", picture), tmp_path / "out", drawing)
    assert {name for name, mean in means(found).items() if mean == 0.0} == wrong
    others = {name: mean for name, mean in means(found).items() if name not in wrong}
    assert min(others.values()) >= 5 / 6  # readers may take one of the six signs for another on another ground


def test_missing_and_damaged_images_are_counted_and_never_scores(
    tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable
):
    folder = rendered(suite, suite.prompts(None), 1, tmp_path / "holes", as_asked)
    files = sorted(folder.iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:200])
    found = of_folder(suite, folder, tmp_path / "out", drawing)
    cell = found.summary["models"]["images"]["exact"]
    assert (cell["mean"], cell["scored"], cell["not_applicable"], cell["failed"]) == (1.0, COUNT - 2, 0, 2)
    assert not found.complete
    assert found.table["error"].dropna().str.contains("there is no image|damaged").all()


def test_stack_draws_what_generate_draws(tmp_path: Path, suite: Suite, drawing: Drawing, stack: Stack):
    """Each image depends on (seed, prompt, number) alone, not on the batch it is drawn in, but for rounding of its decoding."""
    prompts = suite.prompts(None)
    drawing = replace(drawing, count=2)
    files = draw_images(stack, samples_of(suite, prompts, 2), tmp_path, drawing)
    expected = stack.generate(prompts, group_size=2, seed=0, sampling=drawing.sampling).images
    drawn = np.stack([np.asarray(Image.open(file)) for file in files if file is not None])
    assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_stopped_drawing_goes_on_with_what_is_missing(tmp_path: Path, suite: Suite, drawing: Drawing, stack: Stack):
    samples = samples_of(suite, suite.prompts(None), 1)
    files = [file for file in draw_images(stack, samples, tmp_path, drawing) if file is not None]
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    files[0].unlink()  # not drawn yet
    files[1].write_bytes(before[files[1]][0][:300])  # cut off
    Image.open(files[2]).copy().save(files[2])  # of another origin: without the hash
    draw_images(stack, samples, tmp_path, drawing)
    assert all(file.read_bytes() == data for file, (data, _) in before.items())
    assert [file.stat().st_mtime_ns != time for file, (_, time) in before.items()] == [True] * 3 + [False] * (COUNT - 3)


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 0.5}])
def test_other_settings_draw_anew(tmp_path: Path, suite: Suite, drawing: Drawing, stack: Stack, change: dict):
    samples = samples_of(suite, suite.prompts(None)[:2], 1)
    files = draw_images(stack, samples, tmp_path, drawing)
    keys = [Image.open(file).info[KEY] for file in files if file]
    sampling = replace(drawing.sampling, **{key: value for key, value in change.items() if key != "seed"})
    draw_images(stack, samples, tmp_path, replace(drawing, sampling=sampling, seed=change.get("seed", 0)))
    assert all(Image.open(file).info[KEY] != key for file, key in zip(files, keys, strict=True) if file)


def test_stopped_scoring_goes_on_and_ends_the_same(tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable):
    folder = rendered(suite, suite.prompts(None), 1, tmp_path / "good", as_asked)
    whole = of_folder(suite, folder, tmp_path / "out", drawing)
    journal = tmp_path / "out" / "scores" / "images.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # killed in the middle of a line
    again = of_folder(suite, folder, tmp_path / "out", drawing)
    pd.testing.assert_frame_equal(again.table, whole.table)
    assert again.summary == whole.summary
    assert journal.read_bytes() == b"".join(lines)


def test_what_is_in_the_journal_is_not_scored_again(tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable):
    folder = rendered(suite, suite.prompts(None), 1, tmp_path / "good", as_asked)
    of_folder(suite, folder, tmp_path / "out", drawing)
    journal = tmp_path / "out" / "scores" / "images.jsonl"
    journal.write_text(journal.read_text().replace('"exact": 1.0', '"exact": 0.5'))  # no reader says so
    assert means(of_folder(suite, folder, tmp_path / "out", drawing))["exact"] == 0.5


def test_changed_image_is_scored_anew(tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable):
    folder, out = tmp_path / "images", tmp_path / "out"
    assert means(of_folder(suite, rendered(suite, suite.prompts(None), 1, folder, as_asked), out, drawing))["exact"] == 1.0
    assert means(of_folder(suite, rendered(suite, suite.prompts(None), 1, folder, wrong_text), out, drawing))["exact"] == 0.0


def test_statistics_are_those_of_the_shared_functions(tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable):
    prompts = suite.prompts(None)
    good = rendered(suite, prompts, 1, tmp_path / "good", as_asked)
    half = rendered(suite, prompts, 1, tmp_path / "half", lambda p, n: (as_asked if p.id[-1] in "024" else wrong_text)(p, n))
    found = evaluate(suite, {"half": str(half), "good": str(good)}, tmp_path / "out", drawing, no_stack)
    column = {model: part["exact"].to_numpy() for model, part in found.table.groupby("model")}
    ids = [prompt.id for prompt in prompts]
    cell = found.summary["models"]["half"]["exact"]
    assert [cell[key] for key in ("mean", "low", "high")] == pytest.approx(mean_interval(column["half"], clusters=ids))
    row = next(row for row in found.summary["differences"] if row["figure"] == "exact")
    assert (row["first"], row["second"], row["pairs"]) == ("half", "good", COUNT)
    expected = paired_difference(column["good"], column["half"], clusters=ids)
    assert [row[key] for key in expected._fields] == pytest.approx(list(expected))


def test_breakdown_adds_up_to_the_whole(tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable):
    prompts = suite.prompts(None)
    found = of_folder(suite, rendered(suite, prompts, 1, tmp_path / "good", as_asked), tmp_path / "out", drawing)
    by_colour = found.summary["categories"]
    assert set(by_colour) == {prompt.checks[0]["colour"] for prompt in prompts}
    assert sum(cells["images"]["exact"]["scored"] for cells in by_colour.values()) == COUNT


def test_what_a_kill_leaves_is_taken_up(tmp_path: Path, suite: Suite, drawing: Drawing, stack: Stack):
    samples = samples_of(suite, suite.prompts(None)[:1], 1)
    (tmp_path / f".{samples[0].names[0]}.png.writing").write_bytes(b"half an image")
    draw_images(stack, samples, tmp_path, drawing)
    assert [path.name for path in tmp_path.iterdir()] == [f"{samples[0].names[0]}.png"]


def test_summary_names_the_weights_that_drew_and_the_folder_that_held(
    tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable, stack: Stack
):
    """Another stack has other hashes under the same place, so that a figure says which weights it is of."""
    folder = rendered(suite, suite.prompts(None), 1, tmp_path / "good", as_asked)
    next(folder.iterdir()).unlink()
    changed = Stack.from_pretrained("embedded")
    with torch.no_grad():
        next(changed.model.parameters())[0, 0] += 1
    stacks = {"embedded": stack, str(tmp_path / "tuned"): changed}
    (tmp_path / "tuned" / "checkpoints").mkdir(parents=True)
    places = {"before": "embedded", "after": str(tmp_path / "tuned"), "images": str(folder)}
    found = evaluate(suite, places, tmp_path / "out", drawing, stacks.__getitem__)
    sources = json.loads((tmp_path / "out" / "summary.json").read_text())["sources"]
    assert sources == {
        "before": {"place": "embedded", "weights": stack.weight_hashes()},
        "after": {"place": places["after"], "weights": changed.weight_hashes()},
        "images": {"place": str(folder), "images": COUNT - 1},
    }
    parts = sources["before"]["weights"]
    assert {name for name in parts if parts[name] != sources["after"]["weights"][name]} == {"autoregressive"}
    console = Console(record=True, width=200)
    show(found, console)
    shown = console.export_text()
    assert f"before: drawn by embedded, weights autoregressive {parts['autoregressive'][:12]}" in shown
    assert f"images: {COUNT - 1} image files of" in shown


def test_written_files_hold_what_was_found(tmp_path: Path, suite: Suite, drawing: Drawing, rendered: Callable):
    found = of_folder(suite, rendered(suite, suite.prompts(None), 1, tmp_path / "good", as_asked), tmp_path / "out", drawing)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "samples.parquet"), found.table)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["models"] == found.summary["models"]


def test_folder_without_any_of_the_images_says_how_they_are_called(tmp_path: Path, suite: Suite, drawing: Drawing):
    with pytest.raises(EvaluationError, match="none of the 6 images of this suite, which are called like signs-held"):
        of_folder(suite, tmp_path, tmp_path / "out", drawing)


@pytest.mark.parametrize(
    ("places", "labels"),
    [
        (["embedded"], {"embedded": "embedded"}),
        (["runs/a", "b=runs/a"], {"a": "runs/a", "b": "runs/a"}),
        (["some folder/an image"], {"an-image": "some folder/an image"}),
    ],
)
def test_labels(places: list[str], labels: dict[str, str]):
    assert labels_of(places) == labels


@pytest.mark.parametrize(("places", "reason"), [([], "nothing to evaluate"), (["x/a", "y/a"], 'two models are called "a"')])
def test_labels_that_cannot_be(places: list[str], reason: str):
    with pytest.raises(EvaluationError, match=reason):
        labels_of(places)


def test_unknown_suite_and_option_are_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match='unknown suite "sings"; nearest: signs'):
        build_suite("sings", {})
    with pytest.raises(EvaluationError, match='unknown option of suite "signs" "layuot"; nearest: layout'):
        build_suite("signs", {"layuot": "line"})


def test_suites_that_there_are():
    assert {"signs", "longtext", "geneval", "dpg"} <= set(suites.names())
    assert all(line for _, _, line in suites.describe())


def test_journal_drops_what_is_no_record(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a", "row": {"x": 1}}\n[1]\n{"key": "b", "row": {}}\n')
    assert Journal(path).rows == {"a": {"x": 1}}
    assert path.read_text() == '{"key": "a", "row": {"x": 1}}\n'
