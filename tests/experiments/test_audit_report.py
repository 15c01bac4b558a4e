"""An audit's files hold what was measured, whole or not at all; the command says what is wrong in a sentence."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from xomni_rl.cli import app
from xomni_rl.experiments.audit_report import FILES, Audit, audit_reward, folder_samples
from xomni_rl.rewards.audit import AuditError, sign_samples
from xomni_rl.rewards.base import RewardUnavailableError
from xomni_rl.rewards.composite import CompositeReward, build_composite

REWARDS = '''
def brightness(images, prompts):
    """Mean level."""
    return [image.mean() / 255 for image in images]


def redness(images, prompts):
    return [image[..., 0].mean() / 255 for image in images]
'''


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "levels.py").write_text(REWARDS)
    return tmp_path


@pytest.fixture
def levels(workplace: Path) -> CompositeReward:
    return build_composite({"components": {name: {"reward": f"levels.py:{name}"} for name in ("brightness", "redness")}})


@pytest.fixture
def pictures(workplace: Path) -> Path:
    """A folder with five pictures of several sizes, and their prompts."""
    folder = workplace / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        pixels = np.full((24 + index, 40, 3), 20 * index + 100, np.uint8)
        pixels[5:15, 5:15] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"p{index}.png")
    lines = [json.dumps({"id": f"p{index}", "text": f"picture {index}"}) for index in range(5)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments], env={"COLUMNS": "200"})


def audit(reward: CompositeReward, out: Path, console: Console | None = None) -> Audit:
    return audit_reward(reward, out, samples=sign_samples(3), config={"a": 1}, console=console)


def test_table_has_a_row_per_reward_and_variant_with_the_measured_means(levels: CompositeReward, tmp_path: Path) -> None:
    made = audit(levels, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "audit.csv").read_text().splitlines()))
    assert len(rows) == 3 * len(made.scores.variants)  # brightness, redness, composite
    clean = [sample.subject.image.mean() / 255 for sample in sign_samples(3)]
    [row] = [row for row in rows if (row["reward"], row["perturbation"]) == ("brightness", "clean")]
    assert float(row["mean"]) == pytest.approx(np.mean(clean), abs=1e-6)
    [blank] = [row for row in rows if (row["reward"], row["perturbation"]) == ("redness", "blank")]
    assert float(blank["mean"]) == pytest.approx(128 / 255, abs=1e-6)
    assert {row["scored"] for row in rows if row["perturbation"] == "blur"} == {"3"}


def test_record_says_what_was_audited_with_what(levels: CompositeReward, tmp_path: Path) -> None:
    made = audit(levels, tmp_path / "out")
    text = (tmp_path / "out" / "audit.json").read_text()
    found = json.loads(text)
    assert "NaN" not in text
    assert found["samples"] == 3
    assert found["domain"] == "held-out signs"
    assert found["config"] == {"a": 1}
    assert found["verdicts"] == made.verdicts
    assert found["rewards"]["redness"]["version"] == "unversioned"
    assert {"numpy", "scipy", "pillow", "python"} <= found["packages"].keys()
    assert found["agreement"]["names"] == ["brightness", "redness", "composite"]
    assert len(found["effects"]) == 3 * len(made.scores.variants)


def test_nothing_but_the_files_is_left_and_old_ones_are_replaced(levels: CompositeReward, tmp_path: Path) -> None:
    out = tmp_path / "out"
    audit(levels, out)
    (out / "audit.csv").write_text("old")
    audit(levels, out)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert (out / "audit.csv").read_text() != "old"


def test_file_of_somebody_else_is_not_replaced(levels: CompositeReward, tmp_path: Path) -> None:
    (tmp_path / "audit.csv").write_text("mine")
    with pytest.raises(AuditError, match=r"audit\.csv would be replaced .* choose another folder"):
        audit(levels, tmp_path)
    assert (tmp_path / "audit.csv").read_text() == "mine"
    assert not (tmp_path / "audit.json").exists()


def test_screen_shows_tables_counts_and_verdicts(levels: CompositeReward, tmp_path: Path) -> None:
    screen = Console(file=io.StringIO(), width=200)
    made = audit(levels, tmp_path / "out", screen)
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    for word in ("grade 4", "monotone", "failed", "wrong_text", "text_spam", "Spearman", "brightness: ", "composite"):
        assert word in shown, word
    assert all(line in shown for line in made.verdicts.values())


def test_folder_that_cannot_be_written_to_is_refused_before_scoring(levels: CompositeReward, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="cannot be written there"):
        audit(levels, tmp_path / "file")
    with pytest.raises(AuditError, match="batch_size must be at least 1"):
        audit_reward(levels, tmp_path / "out", samples=sign_samples(2), batch_size=0)


def test_reward_that_is_not_here_is_a_sentence(tmp_path: Path) -> None:
    missing = build_composite({"components": {"ocr": {"options": {"model_path": str(tmp_path / "none.onnx")}}}})
    with pytest.raises((RewardUnavailableError, ValueError), match=r"none\.onnx"):
        audit(missing, tmp_path / "out")


def test_samples_of_a_folder_are_spread_over_it(pictures: Path) -> None:
    samples = folder_samples(pictures, pictures / "prompts.jsonl", 3)
    assert [sample.prompt.id for sample in samples] == ["p0", "p2", "p4"]
    assert [sample.subject.image.shape for sample in samples] == [(24, 40, 3), (26, 40, 3), (28, 40, 3)]
    assert len(folder_samples(pictures, pictures / "prompts.jsonl", 99)) == 5


def test_command_audits_own_pictures_without_a_renderer(pictures: Path) -> None:
    done = run("reward=levels.py:brightness", "--images", "pictures", "--out", "mine", "--count", "4")
    assert done.exit_code == 0, done.output
    found = json.loads(Path("mine/audit.json").read_text())
    assert (found["domain"], found["samples"]) == ("pictures of a folder", 4)
    assert "wrong_text" not in {effect["perturbation"] for effect in found["effects"]}
    assert re.search(r"brightness: .*", done.output)


def test_command_audits_signs(workplace: Path) -> None:
    done = run("reward=levels.py:brightness", "--count", "2")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in Path("audit").iterdir()) == sorted(FILES)
    assert "wrong_text" in done.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["reward=levels.py:brightness", "--images", "nowhere"], "nowhere is no folder of images"),
        (["reward=levels.py:brightness", "--prompts", "x.txt"], "--prompts belongs to pictures of your own"),
        (["reward=levels.py:brightness", "--images", "pictures", "--prompts", "x.txt"], "there are no prompts at x.txt"),
        (["reward=orc"], "nearest: ocr"),
        (["reward.components.ocr.weight=1"], "name the reward once"),
        (["reward=levels.py:brightness", "trainer.steps=1"], "is not of the reward"),
    ],
)
def test_bad_arguments_get_a_sentence(pictures: Path, arguments: list[str], sentence: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_damaged_picture_and_prompts_get_a_sentence(pictures: Path) -> None:
    (pictures / "p3.png").write_bytes(b"no picture")
    done = run("reward=levels.py:brightness", "--images", "pictures")
    assert (done.exit_code, "p3.png" in done.output) == (1, True)
    (pictures / "prompts.jsonl").write_text('{"text": ""}')
    done = run("reward=levels.py:brightness", "--images", "pictures")
    assert (done.exit_code, "prompts.jsonl:1" in done.output) == (1, True)
