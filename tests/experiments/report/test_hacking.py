"""Hacking is flagged where trained and log-only rewards part for good, and nowhere else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from xomni_rl.experiments.report.data import read_run
from xomni_rl.experiments.report.hacking import Change, gaps, trained_and_logged, windowed_gap

WriteRun = Callable[..., Path]
STEPS = np.arange(1, 401)
RISING = 0.5 + 0.4 * STEPS / 400


def curves(logged: np.ndarray, trained: np.ndarray = RISING, noise: float = 0.02, seed: int = 0) -> Any:
    """The gap of two curves with noise on every step."""
    rng = np.random.default_rng(seed)
    noisy = [curve + rng.normal(0, noise, len(STEPS)) for curve in (trained, logged)]
    return windowed_gap("judge", STEPS, *noisy)


def test_log_only_reward_that_turns_while_the_trained_one_rises_is_hacking() -> None:
    # Rises to step 200, then falls by 0.2, ten standard deviations of a step. The best window is the 10th or 11th of 20.
    gap = curves(0.6 + 0.2 * np.minimum(STEPS, 400 - STEPS) / 200)
    assert gap.hacked
    assert 180 <= gap.best_step <= 220
    assert gap.last_step == 400
    # windows are 20 steps wide: the last one's mean is 0.6 + 0.2 · 9.5/200, the best one's 0.8 − 0.2 · 9.5/200
    assert gap.fall.size == pytest.approx(0.2 - 2 * 0.2 * 9.5 / 200, abs=0.02)
    assert f"step {gap.best_step}" in gap.message


@pytest.mark.parametrize(
    ("trained", "logged"),
    [
        (RISING, RISING),  # both learn
        (RISING, np.full(400, 0.7)),  # the other is untouched
        (RISING[::-1], RISING[::-1]),  # both collapse
        (np.full(400, 0.5), 0.8 - 0.3 * STEPS / 400),  # nothing was learned; the other drifts
        (RISING, 0.7 - 0.01 * STEPS / 400),  # half a standard deviation of a step: nobody would see it
    ],
    ids=["both rise", "flat", "both fall", "nothing earned", "a trifle"],
)
def test_curves_that_do_not_part_are_no_hacking(trained: np.ndarray, logged: np.ndarray) -> None:
    assert not curves(logged, trained).hacked


def test_noise_alone_is_never_hacking() -> None:
    # 300 runs whose log-only reward is noise around 0.7: choosing the best of 20 windows must not make a fall of it.
    assert not any(curves(np.full(400, 0.7), noise=0.05, seed=seed).hacked for seed in range(300))


def test_curves_of_different_lengths_are_refused_and_short_runs_not_judged() -> None:
    with pytest.raises(ValueError, match=r"\(3,\)"):
        windowed_gap("judge", np.arange(3), np.zeros(3), np.zeros(2))
    assert windowed_gap("judge", STEPS[:19], RISING[:19], RISING[:19]) is None


def test_constant_curve_is_no_fall() -> None:
    assert not Change(0.0, 0.0).at_least(5.0)
    assert Change(0.0, 0.0).at_least(-2.0)
    assert not windowed_gap("judge", STEPS, RISING, np.ones(400)).hacked  # type: ignore[union-attr]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """The run with every line of its metrics changed."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(change(json.loads(line))) + "\n" for line in lines))
    return folder


def test_run_that_hacks_is_flagged_and_its_lower_is_better_twin_is_not(write_run: WriteRun) -> None:
    rng = np.random.default_rng(0)

    def worse(line: dict[str, Any]) -> dict[str, Any]:
        return line | ({"reward/colour": 0.9 - 0.005 * line["step"] + rng.normal(0, 0.01)} if line["step"] else {})

    folder = rewritten(write_run(steps=100), worse)
    assert [(gap.name, gap.source, gap.hacked) for gap in gaps(read_run(folder))] == [("colour", "training", True)]
    checks = {"colour": {"scores": [0.0, 1.0]}}  # the good image scores below the worthless one: lower is better
    (folder / "reward_checks.json").write_text(json.dumps(checks))
    assert [gap.hacked for gap in gaps(read_run(folder))] == [False]


def test_held_out_reward_of_the_evaluation_alone_is_paired_by_prompt(write_run: WriteRun) -> None:
    folder = write_run(heldout=40)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["reward"]["components"]["colour"]
    config["trainer"]["evaluation"] = {"reward": {"components": {"ocr": {"weight": 1.0}, "colour": {"weight": 1.0}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for path in (folder / "heldout").glob("*.parquet"):
        step, rows = int(path.stem[5:]), pq.read_table(path).to_pylist()
        for number, row in enumerate(rows):  # every prompt loses 0.3 between steps 10 and 20, and 0.01 back and forth
            row["reward_colour"] = 0.5 + number / 100 - 0.3 * (step == 20) + 0.01 * (-1) ** (number + step // 10)
        pq.write_table(type(pq.read_table(path)).from_pylist(rows), path)
    means = {0: 0.695, 10: 0.705, 20: 0.395}
    rewritten(folder, lambda line: line | ({"heldout/colour": means[line["step"]]} if line["step"] in means else {}))
    run = read_run(folder)
    assert trained_and_logged(run) == ({"ocr": 1.0}, [], ["colour"])
    (gap,) = gaps(run)
    assert (gap.source, gap.best_step, gap.last_step) == ("held-out", 10, 20)
    # the back and forth is ±0.01 at steps 10 and 20 with opposite signs: differences 0.3 ± 0.02, 40 of them
    assert gap.fall.size == pytest.approx(0.3)
    assert gap.fall.error == pytest.approx(0.02 * (40 / 39) ** 0.5 / 40**0.5)
    assert gap.hacked


def test_run_without_a_log_only_reward_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "reward/ocr": 0.5}) + "\n" for s in range(1, 50)))
    (tmp_path / "config.yaml").write_text("reward: {components: {ocr: {weight: 1.0}}}\n")
    assert gaps(read_run(tmp_path)) == []
