"""Several runs on one page: methods, bands over seeds, what only some runs have."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tests.experiments.report.test_page import parsed
from xomni_rl.cli import app
from xomni_rl.experiments.report.data import ReportError, read_run, runs_inside
from xomni_rl.experiments.report.overlay import methods, overlay_panel, overlay_panels
from xomni_rl.experiments.report.page import build_report

WriteRun = Callable[..., Path]


def other_algorithm(folder: Path) -> Path:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"algorithm": {"name": "rloo", "options": {}}}))
    return folder


def test_runs_that_differ_by_the_seed_are_one_method(write_run: WriteRun) -> None:
    folders = [write_run("a", seed=0), write_run("b", seed=1), other_algorithm(write_run("c", seed=0))]
    found = methods([read_run(folder) for folder in folders])
    assert {name: [run.folder.name for run in runs] for name, runs in found.items()} == {"grpo": ["a", "b"], "rloo": ["c"]}


def test_runs_with_the_same_settings_and_seed_are_named_by_folder(write_run: WriteRun) -> None:
    found = methods([read_run(write_run("a")), read_run(write_run("b"))])
    assert list(found) == ["a", "b"]


def test_band_goes_from_the_lowest_to_the_highest_seed_at_common_steps(tmp_path: Path) -> None:
    runs = []
    for seed, last in ((0, 3), (1, 4)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        lines = [{"step": step, "entropy": step + seed} for step in range(1, last + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(read_run(folder))
    panel = overlay_panel({"grpo": runs}, "entropy", "Entropy", "nats")
    assert panel is not None
    band, line = panel.figure.data
    # Seeds have s and s + 1 at steps 1 to 3: mean s + 0.5; the band runs there on top and back at the bottom.
    np.testing.assert_array_equal(line.x, [1, 2, 3])
    np.testing.assert_array_equal(line.y, [1.5, 2.5, 3.5])
    np.testing.assert_array_equal(band.y, [2, 3, 4, 3, 2, 1])
    assert overlay_panel({"grpo": runs}, "reward", "Reward", "") is None


def test_metric_that_one_seed_lacks_is_not_drawn_for_its_method(write_run: WriteRun) -> None:
    whole, lacking = write_run("a", seed=0), write_run("b", seed=1)
    lines = [json.loads(line) for line in (lacking / "metrics.jsonl").read_text().splitlines()]
    (lacking / "metrics.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in x.items() if k != "entropy"}) + "\n" for x in lines)
    )
    found = overlay_panels(methods([read_run(whole), read_run(lacking)]))
    assert "all-entropy" not in [panel.key for panel in found["health"]]
    assert "all-approx_kl" in [panel.key for panel in found["health"]]


def test_page_of_several_runs_has_each_with_its_record(write_run: WriteRun, tmp_path: Path) -> None:
    folders = [write_run("a", seed=0), write_run("b", seed=1), other_algorithm(write_run("c", seed=0))]
    page = parsed(build_report(folders, tmp_path / "all.html"))
    assert len([details for details in page.every("details") if details.get("class") == "run"]) == 3
    assert page.text.count("Configuration") == 3
    figures = json.loads(page.scripts[0])
    wanted = [div["data-figure"] for div in page.every("div") if "data-figure" in div]
    assert sorted(map(str, wanted)) == sorted(figures)
    assert len([trace for trace in figures["all-reward"]["data"] if trace.get("fill")]) == 1  # rloo has one seed


def test_command_takes_runs_and_folders_of_runs(write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write_run("a", seed=0), write_run("b", seed=1)]
    assert runs_inside([tmp_path]) == folders
    monkeypatch.chdir(tmp_path)
    one = CliRunner().invoke(app, ["report", "a"])
    assert (one.exit_code, one.stdout) == (0, "a/report.html\n")
    both = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert (both.exit_code, both.stdout) == (0, "report.html\n")
    absent = CliRunner().invoke(app, ["report", "absent"])
    assert (absent.exit_code, absent.stderr) == (1, "error: absent is not a folder\n")


def test_folder_given_twice_or_none_is_refused(write_run: WriteRun) -> None:
    folder = write_run()
    with pytest.raises(ReportError, match="given twice"):
        build_report([folder, folder])
    with pytest.raises(ReportError, match="at least one"):
        build_report([])
