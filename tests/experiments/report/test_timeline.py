"""The grid over training and the advantages over steps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xomni_rl.experiments.report.data import read_run
from xomni_rl.experiments.report.figures import panels
from xomni_rl.experiments.report.timeline import BINS, TABLES, advantage_histograms, heldout_grid, spread

WriteRun = Callable[..., Path]


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(3, 6, [0, 1, 2]), (11, 3, [0, 5, 10]), (0, 2, []), (100, 4, [0, 33, 66, 99])],
)
def test_chosen_items_are_spread_with_both_ends(count: int, limit: int, expected: list[int]) -> None:
    assert spread(range(count), limit) == expected


def test_one_item_cannot_have_both_ends() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        spread([1, 2], 1)


def test_grid_has_the_same_prompts_at_every_evaluation(write_run: WriteRun) -> None:
    run = read_run(write_run(images=5))
    grid = heldout_grid(run, lambda sample: sample.image is not None, rows=3)
    assert grid is not None
    assert grid.steps == [0, 10, 20]
    assert len(grid.rows) == 3
    for row in grid.rows:
        assert {sample.prompt for sample in row.samples if sample} == {row.prompt}
        assert len({(sample.prompt_id, sample.index) for sample in row.samples if sample}) == 1


def test_advantages_of_every_step_sum_to_one(tmp_path: Path) -> None:
    # 45 steps, of which 40 are read; step s has the advantages −s and s, so the outermost bins hold those of the last step.
    (tmp_path / "rollouts").mkdir()
    for step in range(1, 46):
        pq.write_table(pa.table({"advantage": [-float(step), float(step)]}), tmp_path / "rollouts" / f"step_{step:06d}.parquet")
    (tmp_path / "rollouts" / "step_000046.parquet").write_bytes(b"PAR1 cut short")
    found = advantage_histograms(tmp_path)
    assert found is not None
    assert found.shares.shape == (TABLES - 1, BINS)  # the damaged one was chosen as the last, and left out
    np.testing.assert_allclose(found.shares.sum(axis=1), 1.0)
    assert (found.edges[0], found.edges[-1]) == (-found.steps[-1], found.steps[-1])
    np.testing.assert_array_equal(found.shares[-1][[0, -1]], [0.5, 0.5])


def test_one_step_of_rollouts_has_no_panel_over_steps(write_run: WriteRun) -> None:
    assert [panel.key for panel in panels(read_run(write_run()))["advantages"]] == ["advantages"]
