"""The report's curves: thinning keeps what matters, absent metrics leave no empty panel."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xomni_rl.experiments.report.data import read_run
from xomni_rl.experiments.report.figures import AREA_POINTS, MAX_POINTS, bucket_means, panels, thin

WriteRun = Callable[..., Path]


@given(
    y=hnp.arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e6, 1e6)),
    limit=st.integers(4, 50),
)
def test_thinned_curve_keeps_its_ends_and_extremes(y: np.ndarray, limit: int) -> None:
    x = np.arange(len(y), dtype=np.float64)
    kept_x, kept_y = thin(x, y, limit)
    assert len(kept_x) <= max(limit, 4)
    assert (kept_x[0], kept_x[-1]) == (x[0], x[-1])
    assert (kept_y.min(), kept_y.max()) == (y.min(), y.max())
    assert np.all(np.diff(kept_x) > 0)
    np.testing.assert_array_equal(kept_y, y[kept_x.astype(int)])


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        thin(np.zeros(3), np.zeros(2))


def test_bucket_means_keep_the_total(write_run: WriteRun) -> None:
    # 1,000 rows into 200 buckets of 5: the mean of the means is the mean.
    frame = pd.DataFrame({"a": np.arange(1000.0)}, index=pd.Index(np.arange(1, 1001), name="step"))
    means = bucket_means(frame)
    assert len(means) == AREA_POINTS
    assert means["a"].mean() == pytest.approx(frame["a"].mean())
    assert means.index[-1] == 1000


def test_full_run_has_every_panel(write_run: WriteRun) -> None:
    found = {key: [panel.key for panel in section] for key, section in panels(read_run(write_run())).items()}
    assert found == {
        "curves": ["reward", "heldout", "components"],
        "health": [
            "kl",
            "entropy",
            "clip_fraction",
            "exactness",
            "grad_norm",
            "shares",
            "loss",
            "learning_rate",
        ],
        "time": ["time", "memory"],
        "advantages": ["advantages"],
    }


def test_absent_metrics_leave_no_panel(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "entropy": 0.9}\n')
    found = [panel.key for section in panels(read_run(tmp_path)).values() for panel in section]
    assert found == ["entropy"]


def test_long_run_draws_at_most_the_limit_and_leaves_out_nan(tmp_path: Path) -> None:
    rows = [f'{{"step": {i}, "reward": {"NaN" if i == 7 else i % 13}}}' for i in range(1, 6001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    (panel,) = (p for p in panels(read_run(tmp_path))["curves"] if p.key == "reward")
    raw, smooth = panel.figure.data
    assert len(raw.x) <= MAX_POINTS
    assert len(smooth.x) <= MAX_POINTS
    assert np.isfinite(np.asarray(raw.y)).all()


def test_advantage_histogram_counts_every_rollout(write_run: WriteRun) -> None:
    run = read_run(write_run())
    (panel,) = panels(run)["advantages"]
    assert int(np.asarray(panel.figure.data[0].y).sum()) == len(run.rollouts)


def test_time_note_gives_shares_of_the_whole_run(tmp_path: Path) -> None:
    # 3 s of 4 s sampling, 1 s of 4 s updating; "total" is no part of itself.
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": {"update": 1.0, "sample": 3.0, "total": 4.0}}\n')
    (panel,) = panels(read_run(tmp_path))["time"]
    assert panel.note == "Whole run: sample 75% · update 25%."


def test_evaluation_time_stands_in_the_note_not_in_the_area(write_run: WriteRun) -> None:
    # The generator evaluates at steps 0, 10 and 20, 6 s each: 18 s in all.
    panel, _ = panels(read_run(write_run(steps=20)))["time"]
    assert [area.name for area in panel.figure.data] == ["sample", "decode", "reward", "update", "other"]
    assert panel.note.endswith("Besides: heldout 18 s.")


def test_equal_curves_become_one_with_both_names(tmp_path: Path) -> None:
    lines = [f'{{"step": {i}, "reward/ocr": {i / 4}, "reward/char": {i / 4}, "reward/exact": 0.1}}' for i in range(1, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (panel,) = (p for p in panels(read_run(tmp_path))["curves"] if p.key == "components")
    assert [curve.name for curve in panel.figure.data] == ["ocr = char", "exact"]


def test_scheduled_weights_have_a_panel(tmp_path: Path) -> None:
    lines = [f'{{"step": {i}, "weight/ocr": {1 / i}}}' for i in range(1, 4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (panel,) = panels(read_run(tmp_path))["curves"]
    assert (panel.key, panel.figure.data[0].name) == ("weights", "ocr")
