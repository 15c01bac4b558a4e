"""`xomni-rl evaluate` as people use it: a table, one line of JSON, exit statuses, sentences."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from xomni_rl.cli import app
from xomni_rl.commands.evaluate import parse_suite_options
from xomni_rl.config import ConfigError
from xomni_rl.prompt_sets.signs import render_sign, signs


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["evaluate", *arguments])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "pictures"
    images.mkdir()
    for prompt in signs("heldout", 4):
        Image.fromarray(render_sign(prompt.texts[0], prompt.checks[0]["colour"])).save(images / f"{prompt.id}.png")
    return images


def test_folder_and_stack_are_compared(tmp_path: Path, folder: Path):
    out = tmp_path / "out"
    arguments = ["drawn=embedded", str(folder), "--option", "prompts=4", "--out", str(out), "--device", "cpu"]
    code, shown, _ = invoke(*arguments)
    assert code == 0
    assert re.search(r"pictures\s+exact\s+1\.0000\s+1\.0000 – 1\.0000\s+4\s+0\s+0", shown)
    assert "signs: 4 prompts, 1 image each" in shown
    assert "pictures − drawn" in shown
    assert len(list((out / "images" / "drawn").glob("*.png"))) == 4
    code, line, _ = invoke(*arguments, "--json")
    assert (code, line.count("\n")) == (0, 1)
    assert json.loads(line) == json.loads((out / "summary.json").read_text())


def test_config_of_another_generator_among_the_images_does_not_make_them_a_stack(tmp_path: Path, folder: Path):
    (folder / "config.json").write_text('{"steps": 50}')
    assert invoke(str(folder), "--option", "prompts=4", "--out", str(tmp_path / "out"))[0] == 0
    (folder / "config.json").write_text('{"model_type": "x-omni"}')
    code, _, said = invoke(str(folder), "--option", "prompts=4", "--out", str(tmp_path / "out"))
    assert code == 1
    assert "vision_config" in said  # of the published checkpoint, which it would be


def test_missing_image_ends_with_status_1_and_the_rest_is_scored(tmp_path: Path, folder: Path):
    next(folder.iterdir()).unlink()
    code, shown, _ = invoke(str(folder), "--option", "prompts=4", "--out", str(tmp_path / "out"))
    assert code == 1
    assert "not scored: pictures, signs-heldout-0-" in shown
    assert re.search(r"exact\s+1\.0000\s+1\.0000 – 1\.0000\s+3\s+0\s+1", shown)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing to evaluate: give embedded"),
        (["nowhere"], "nowhere: is neither embedded"),
        (["embedded", "--suite", "sings"], 'unknown suite "sings"; nearest: signs'),
        (["embedded", "--suite", "geneval"], "suite geneval needs its published prompts: --prompts FILE"),
        (["embedded", "--suite", "dpg", "--compat", "x"], 'unknown compat "x"'),
        (["embedded", "--language", "en"], 'unknown option of suite "signs" "language"'),
        (["embedded", "--size", "big"], "--size must be height x width"),
        (
            ["embedded", "--suite", "longtext", "--recognised", "x.jsonl"],
            "to which embedded would change nothing; leave one out",
        ),
        (
            ["--suite", "longtext", "--recognised", "x.jsonl", "--json", "--seed", "1", "--limit", "1", "--option", "engine=x"],
            "to which --option, --limit would change nothing; leave one out",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = invoke(*arguments)
    assert (code, out) == (1, "")
    assert reason in err


def test_help_teaches_with_examples():
    code, shown, _ = invoke("--help")
    assert code == 0
    assert shown.count("xomni-rl evaluate") >= 5


def test_suites_are_listed():
    result = CliRunner().invoke(app, ["list", "suites"])
    assert all(name in result.stdout for name in ("signs", "longtext", "geneval", "dpg"))


def test_options_nest_at_dots():
    given = ["vlm.backend=server", "vlm.concurrency=2", "layout=line", "grid=true"]
    assert parse_suite_options(given) == {"vlm": {"backend": "server", "concurrency": 2}, "layout": "line", "grid": True}


@pytest.mark.parametrize("option", ["layout", "=x", "vlm.=x", "a=[1"])
def test_option_of_another_form_is_refused(option: str):
    with pytest.raises(ConfigError, match="--option"):
        parse_suite_options([option])


def test_value_with_keys_is_refused():
    with pytest.raises(ConfigError, match="vlm has a value already"):
        parse_suite_options(["vlm=x", "vlm.url=y"])
