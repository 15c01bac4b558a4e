"""`bench rewards` whole, on a few images: every part runs in a process of its own and its figures arrive in the table."""

import pytest

from xomni_rl.experiments.benchmarks.rewards import PARTS, run

SMALL = {
    "shared backbone": {"count": 2, "repeats": 1},
    "composite": {"count": 4, "repeats": 1},
    "server": {"batch": 4, "repeats": 1, "concurrent": 4, "rounds": 1},
}


@pytest.mark.slow
def test_every_part_arrives_in_the_table_and_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(SMALL)
    printed = capsys.readouterr().out
    assert set(figures) == {"ratio", *PARTS}
    assert figures["ratio"] == figures["shared backbone"]["ratio"] > 0
    assert figures["server"]["requests"] == 4
    for part, key in (("shared backbone", "ratio"), ("composite", "over_bound"), ("server", "ratio")):
        assert f"{figures[part][key]:.3f}" in printed


def test_part_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"shared_backbone: TypeError: .*'nothing'"):
        run({"shared backbone": {"nothing": 1}})
