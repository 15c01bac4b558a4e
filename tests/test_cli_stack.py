"""What `--stack`, `--flux`, `--device`, `--size` and `model` come to at the command line, and prompts without a language."""

import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from tests.stack.published_folder import write_checkpoint
from xomni_rl.cli import app
from xomni_rl.commands.draw import load_stack
from xomni_rl.config import compose
from xomni_rl.experiments.run import run_training
from xomni_rl.prompts import load_prompts

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one picture in it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 32)).save("X.png")
    return tmp_path


def refused(*arguments: str) -> str:
    """The one sentence that a command ends with."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


@without_gpu
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["generate", "a street", "--device", "cuda", "--out", "g"], "--device"),
        (["chat", "X.png", "hi", "--device", "cuda"], "--device"),
        (["evaluate", "embedded", "--suite", "signs", "--device", "cuda"], "--device"),
        (["train", "model.device=cuda", "run=r"], "model.device"),
    ],
)
def test_gpu_asked_for_without_one_is_one_sentence_that_names_the_option(
    workplace: Path, command: list[str], option: str
) -> None:
    assert refused(*command) == f"{option}=cuda: there is no CUDA device here; use cpu or auto"
    assert not (workplace / "g").exists()
    assert not (workplace / "r").exists()


@without_gpu
def test_run_from_a_machine_with_a_gpu_is_drawn_with_on_one_without(workplace: Path) -> None:
    small = ["trainer=quick", "trainer.steps=1", "trainer.trackers=[]", "trainer.evaluate_every=null", "reward=contrast"]
    run_training(
        compose(["model.path=tiny_random", "prompts.heldout_count=0", *small, "run=r"]), console=Console(file=io.StringIO())
    )
    config = yaml.safe_load(Path("r/config.yaml").read_text())
    config["model"]["device"] = "cuda"
    Path("r/config.yaml").write_text(yaml.safe_dump(config))
    assert load_stack("r", "cpu").device == load_stack("r").device == torch.device("cpu")


def test_chinese_prompt_without_a_language_is_recorded_as_chinese(workplace: Path) -> None:
    (workplace / "more.txt").write_text("一只写着“OPEN”的杯子\na mug\n", encoding="utf-8")
    command = ["generate", "一块写着“营业中”的招牌", "a sign", "--prompts", "more.txt", "--out", "g"]
    assert CliRunner().invoke(app, command).exit_code == 0
    lines = [json.loads(line) for line in (workplace / "g/prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["language"] for line in lines] == ["zh", "en", "zh", "en"]
    assert [prompt.language for prompt in load_prompts(workplace / "g/prompts.jsonl")] == ["zh", "en", "zh", "en"]


def test_published_checkpoint_without_flux_asks_for_it_and_calls_nothing_damaged(workplace: Path) -> None:
    write_checkpoint(workplace / "X")
    said = refused("generate", "a street", "--stack", "X", "--out", "g")
    assert said.startswith("X needs FLUX.1-dev's VAE and text encoders: say where they lie with --flux FOLDER")
    said = refused("generate", "a street", "--stack", "X", "--flux", "NOPE", "--out", "g")
    assert said == "there is no folder NOPE: give FLUX.1-dev's, as it is downloaded"


@pytest.mark.parametrize("command", [["generate", "a street", "--out", "g"], ["chat", "X.png", "hi"]])
def test_flux_beside_a_stack_that_takes_none_is_refused(workplace: Path, command: list[str]) -> None:
    (workplace / "run").mkdir()
    for stack in ("embedded", "run"):
        said = refused(*command, "--stack", stack, "--flux", "F")
        assert said == f"--flux is for a published X-Omni checkpoint, and {stack} is none: leave it out"
    assert "no stack at X-Omni" in refused(*command, "--stack", "X-Omni", "--flux", "F")  # mistyped: that is what is wrong


def test_checkpoint_that_was_not_downloaded_is_asked_for(workplace: Path) -> None:
    said = refused("train", "model=xomni_7b", "run=r")
    assert said.startswith("no stack at X-Omni-En: give 'embedded' or")
    assert "the folder of a downloaded X-Omni checkpoint" in said
    assert "model.path=FOLDER" in said


def test_size_beyond_the_models_positions_says_how_many_there_are_and_writes_nothing(workplace: Path) -> None:
    # 576 × 576 px are 72 × 72 tokens of 8 px: 5184
    said = refused("generate", "a street", "--size", "576x576", "--out", "g")
    assert said == "an image of 72x72 tokens takes 5184 positions, but the model has 512: make it smaller"
    assert not (workplace / "g").exists()


def test_function_in_the_place_of_a_family_is_refused(workplace: Path) -> None:
    (workplace / "redness.py").write_text("def redness(images, prompts):\n    return images.mean((1, 2, 3))\n")
    said = refused("train", "model.family=redness.py:redness", "run=r")
    assert said.startswith("model.family=redness.py:redness is no model family, it has no from_pretrained and no tiny_random:")
    assert "take one of emu3, janus, xomni" in said
