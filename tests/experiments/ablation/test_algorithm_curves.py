import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xomni_rl.experiments.ablation.algorithm_curves import algorithm_figure, main
from xomni_rl.experiments.ablation.comparison import compare
from xomni_rl.experiments.ablation.plan import PLAN, Plan, PlannedRun
from xomni_rl.experiments.report.data import ReportError


def write_plan(folder: Path, methods: dict[str, list[Path]]) -> None:
    runs = [
        PlannedRun(name, seed, f"{name}/{seed}", [f"algorithm={name}"], "0", name, status="finished")
        for name, found in methods.items()
        for seed, _ in enumerate(found)
    ]
    plan = Plan(["algorithm"], [], [], {}, runs)
    (folder / PLAN).write_text(json.dumps({"format": 1, **asdict(plan)}))


def test_every_algorithm_of_an_ablation_gets_its_picture(two_methods: dict[str, list[Path]], tmp_path: Path) -> None:
    write_plan(tmp_path, two_methods)
    main(tmp_path, tmp_path / "curves")
    assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == ["grpo.png", "gspo.png"]
    with Image.open(tmp_path / "curves" / "gspo.png") as picture:
        assert picture.width > 2 * picture.height
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20  # not an empty card


def test_curve_of_the_held_out_score_is_the_mean_over_seeds_and_prompts(two_methods: dict[str, list[Path]]) -> None:
    comparison = compare(two_methods, metrics=["ocr_char"])
    figure = algorithm_figure(comparison)
    first = next(line for line in figure.axes[0].get_lines() if line.get_label() == "grpo")
    # before: (1 + .5 + .5 + .25)/4; in the middle (1 + 1 + .5 + .5)/4; at the end seeds have (1 + 1 + .5 + .5)/4 and
    # (1 + 1 + 1 + .75)/4: the mean is .84375
    assert np.asarray(first.get_ydata()) == pytest.approx([0.5625, 0.75, 0.84375])
    assert np.asarray(first.get_xdata()) == pytest.approx([0, 80, 160])  # 2 prompts × 4 images a step
    assert [axes.get_title(loc="left") for axes in figure.axes[1:]] == ["Training reward", "Entropy, nats per token"]


def test_folder_without_runs_of_grpo_says_what_it_holds(two_methods: dict[str, list[Path]], tmp_path: Path) -> None:
    write_plan(tmp_path, {"gspo": two_methods["gspo"]})
    with pytest.raises(ReportError, match=r"no ablation with ended runs of grpo.* but gspo"):
        main(tmp_path, tmp_path / "curves")
