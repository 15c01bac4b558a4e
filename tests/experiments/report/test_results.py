"""Tables over seeds: the intervals mean what they say, runs that do not compare are refused."""

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from xomni_rl.experiments.report.data import ReportError
from xomni_rl.experiments.report.picture import readme_picture
from xomni_rl.experiments.report.results import (
    bootstrap_mean,
    csv_table,
    heldout_curve,
    main,
    markdown_table,
    parse_groups,
    results_table,
)

WriteRun = Callable[..., Path]


def write_heldout(folder: Path, step: int, values: list[float], prefix: str = "p") -> None:
    (folder / "heldout").mkdir(parents=True, exist_ok=True)
    rows = [{"prompt_id": f"{prefix}{i}", "index": 0, "metric_ocr_exact": v} for i, v in enumerate(values)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "heldout" / f"step_{step:06d}.parquet")


def test_equal_values_have_an_interval_of_no_width() -> None:
    estimate = bootstrap_mean(np.full((3, 5), 0.25))
    assert (estimate.mean, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_one_seed_interval_is_that_of_a_binomial_share() -> None:
    # 400 prompts, half of them right: standard error sqrt(0.25 / 400) = 0.025, so 0.5 ± 1.96 · 0.025 = 0.451 … 0.549.
    estimate = bootstrap_mean(np.tile([0.0, 1.0], 200)[None])
    assert estimate.mean == 0.5
    assert estimate.low == pytest.approx(0.451, abs=0.006)
    assert estimate.high == pytest.approx(0.549, abs=0.006)


def test_seeds_that_differ_widen_the_interval() -> None:
    # The same prompts' values, once alike in both seeds, once with all the difference between the seeds.
    alike = bootstrap_mean(np.tile([0.0, 1.0], (2, 200)))
    apart = bootstrap_mean(np.repeat([[0.0], [1.0]], 400, axis=1))
    assert (apart.low, apart.high) == (0.0, 1.0)  # one draw in four takes the same seed twice
    assert apart.high - apart.low > alike.high - alike.low


@settings(max_examples=20, deadline=None)
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(0, 1, width=32)))
def test_interval_contains_the_mean_and_lies_in_the_range(values: np.ndarray) -> None:
    estimate = bootstrap_mean(values, resamples=300)
    tolerance = 1e-9
    assert values.min() - tolerance <= estimate.low <= estimate.high <= values.max() + tolerance
    assert estimate == bootstrap_mean(values, resamples=300)  # the same draw every time


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 3)), np.array([[math.nan]])])
def test_malformed_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="without NaN"):
        bootstrap_mean(values)


def test_gain_is_paired_before_and_after(tmp_path: Path) -> None:
    # Two seeds, four prompts: 1 and 2 right before, 3 and 4 after: 3/8 → 7/8, gained 4/8.
    for seed, (before, after) in enumerate([([0, 0, 0, 1], [0, 1, 1, 1]), ([0, 0, 1, 1], [1, 1, 1, 1])]):
        write_heldout(tmp_path / str(seed), 0, before)
        write_heldout(tmp_path / str(seed), 10, after)
    (row,) = results_table({"grpo": [tmp_path / "0", tmp_path / "1"]}, ["ocr_exact"])
    assert (row.before.mean, row.after.mean, row.gain.mean) == (0.375, 0.875, 0.5)
    assert (row.seeds, row.prompts) == (2, 4)


def test_not_applicable_samples_are_left_out(tmp_path: Path) -> None:
    write_heldout(tmp_path, 0, [0.0, math.nan, 1.0])
    write_heldout(tmp_path, 5, [1.0, math.nan, 1.0])
    (row,) = results_table({"grpo": [tmp_path]}, ["ocr_exact"])
    assert (row.prompts, row.before.mean, row.after.mean) == (2, 0.5, 1.0)


def test_runs_stopped_at_different_steps_meet_at_their_mean_last_step(tmp_path: Path) -> None:
    for seed, last in enumerate((30, 40)):
        for step in (0, 20, last):
            write_heldout(tmp_path / str(seed), step, [0.0, 1.0])
    assert [step for step, _ in heldout_curve([tmp_path / "0", tmp_path / "1"], "ocr_exact")] == [0.0, 20.0, 35.0]


def test_runs_with_other_prompts_of_equal_number_are_stacked(tmp_path: Path) -> None:
    for seed, prefix in enumerate("ab"):
        for step in (0, 1):
            write_heldout(tmp_path / str(seed), step, [0.0, 1.0], prefix)
    assert heldout_curve([tmp_path / "0", tmp_path / "1"], "ocr_exact")[0][1].shape == (2, 2)


def test_runs_that_do_not_compare_are_refused(tmp_path: Path) -> None:
    write_heldout(tmp_path / "one", 0, [0.0])
    with pytest.raises(ReportError, match="1 held-out evaluations"):
        results_table({"grpo": [tmp_path / "one"]})
    write_heldout(tmp_path / "one", 1, [0.0])
    with pytest.raises(ReportError, match=r"no 'ocr_char'; it has ocr_exact"):
        results_table({"grpo": [tmp_path / "one"]}, ["ocr_char"])
    write_heldout(tmp_path / "two", 0, [0.0, 1.0])
    write_heldout(tmp_path / "two", 1, [0.0, 1.0])
    with pytest.raises(ReportError, match=r"differ in size: \[1, 2\]"):
        results_table({"grpo": [tmp_path / "one", tmp_path / "two"]}, ["ocr_exact"])


def test_tables_hold_the_same_figures(write_run: WriteRun) -> None:
    folders = [write_run(f"seed{seed}", seed=seed) for seed in range(2)]
    rows = results_table({"grpo": folders})
    records = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert [record["metric"] for record in records] == ["ocr_exact", "ocr_char"]
    for row, record, line in zip(rows, records, markdown_table(rows).splitlines()[2:], strict=True):
        assert float(record["gain"]) == pytest.approx(row.gain.mean, abs=1e-6)
        assert f"{row.after.mean:.3f} [{row.after.low:.3f}, {row.after.high:.3f}]" in line


def test_command_writes_table_and_figure(write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write_run(f"seed{seed}", seed=seed) for seed in range(2)]
    assert main([*map(str, folders), "--out", str(tmp_path / "out" / "table")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["table.csv", "table.md", "table.png", "table.svg"]
    assert "| all seeds | ocr_exact | 2 |" in capsys.readouterr().out
    assert main([str(tmp_path), "--out", str(tmp_path / "x")]) == 1
    assert "0 held-out evaluations" in capsys.readouterr().err


def test_groups_are_named_and_not_mixed_with_folders() -> None:
    assert parse_groups([], [["grpo", "a", "b"], ["dr_grpo", "c"]]) == {"grpo": [Path("a"), Path("b")], "dr_grpo": [Path("c")]}
    with pytest.raises(ReportError, match="either"):
        parse_groups(["a"], [["grpo", "b"]])
    with pytest.raises(ReportError, match="the group grpo has no run folder"):
        parse_groups([], [["grpo"]])
    with pytest.raises(ReportError, match="same name"):
        parse_groups([], [["grpo", "a"], ["grpo", "b"]])


def test_sweep_folders_with_commas_and_equals_signs_are_one_folder_each(
    write_run: WriteRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {name: [write_run(f"{name}_algorithm={name},seed={s}", seed=s) for s in range(2)] for name in ("a", "b")}
    groups = [word for name, found in folders.items() for word in ("--group", name, *map(str, found))]
    assert main([*groups, "--out", str(tmp_path / "ablation")]) == 0
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:6]] == ["| a", "| a", "| b", "| b"]


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
