"""Planned memory is measured memory, within 15 %: peak resident memory of our own step in fresh processes."""

import pytest

from xomni_rl.experiments.planning.check import CASES, MEASURED, Case, compare

TOLERANCE = 0.15
QUICK = [case for case in CASES if case.name in ("vocabulary", "batch", "reference", "adapters", "by layer and rows")]
"""`xomni-rl bench plan` measures the others too."""


def test_cases_differ_in_what_memory_depends_on() -> None:
    for name in (
        "images",
        "layers",
        "hidden",
        "prompts",
        "reference",
        "checkpointing",
        "at_a_time",
        "accumulation",
        "rank",
        "dtype",
    ):
        assert len({getattr(case, name) for case in CASES}) > 1, name


@pytest.mark.slow
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_planned_peak_is_the_measured_one(case: Case) -> None:
    found = compare(case)
    assert set(found) == {*MEASURED, "peak"} - (set() if case.reference else {"reference"})
    assert found["peak"]["measured"] > 200  # MiB: noise of the allocator is a few
    for part, row in found.items():
        assert row["ratio"] == pytest.approx(1, abs=TOLERANCE), (part, row)
