"""The doctor says what is wrong, and only then."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from tests.stack.published_folder import write_checkpoint, write_flux
from xomni_rl.cli import app
from xomni_rl.experiments.doctor import (
    check_checkpoint,
    check_golden,
    check_rewards,
    embedded_stack,
    hub_offline,
    machine,
    reward_checks,
)
from xomni_rl.experiments.run import run_training
from xomni_rl.rewards.base import FunctionReward, Reward, RewardUnavailableError, rewards
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward, build_composite
from xomni_rl.stack.stack import StackError

GOLDEN = Path(__file__).parents[1] / "golden"
FAULTY = """
import numpy as np
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.base import Reward, RewardResult, RewardUnavailableError


def pair():
    return np.full((8, 8, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8), Prompt("p", "a white picture")


def dark(images, prompts):
    return [1 - image.mean() / 255 for image in images]


def broken(images, prompts):
    return [float("nan")] * len(images)


def alike(images, prompts):
    return [0.25] * len(images)


def wild(images, prompts):
    return [3 * image.mean() / 255 for image in images]


def restless(images, prompts):
    global calls
    calls += 1
    return [image.mean() / 512 + 0.1 * (calls % 3) for image in images]


def crowded(images, prompts):
    return [image.mean() / 512 + 0.01 * len(images) for image in images]


def unpaired(images, prompts):
    return [2.0] * len(images)


calls = 0
unpaired.range = (0.0, 1.0)
wild.range = (0.0, 1.0)
dark.self_check = broken.self_check = alike.self_check = wild.self_check = restless.self_check = crowded.self_check = pair


class Big(Reward):
    name, version, cost = "big", "1", "much"

    def load(self):
        raise RewardUnavailableError('reward "big": download big.pt from example.org')

    def score(self, images, prompts):
        raise AssertionError("must not be called")

    self_check = staticmethod(pair)
"""


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_golden_folder_as_shipped_is_within_limits():
    screen = console()
    assert check_golden(GOLDEN, screen)
    assert all(
        word in shown(screen) for word in ("text logits", "image logits", "greedy tokens", "token ids", "decoded features")
    )


def test_one_fixture_off_by_more_than_the_limit_is_not_in_order(tmp_path: Path):
    part = tmp_path / "image_tokenizer"
    shutil.copytree(GOLDEN / "image_tokenizer", part)
    expected = load_file(part / "expected.safetensors")
    changed = {name: value + 1e-3 if value.is_floating_point() else value for name, value in expected.items()}
    save_file(changed, part / "expected.safetensors")
    screen = console()
    assert not check_golden(tmp_path, screen)
    assert "not in order" in shown(screen)
    assert "text logits" not in shown(screen), "a part that is not there is not compared"


def test_folder_without_fixtures_is_an_error(tmp_path: Path):
    with pytest.raises(StackError, match="neither a sub-folder"):
        check_golden(tmp_path, console())


def test_machine_embedded_stack_and_rewards_are_in_order():
    findings = [*machine(), *embedded_stack(), *reward_checks()]
    assert [finding for finding in findings if finding.ok is False] == []
    by_name = {finding.name: finding.value for finding in findings}
    assert by_name["autoregressive"].startswith("sha256 ")
    assert "good image 1.000" in by_name["ocr"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with rewards that have faults."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faulty_rewards.py").write_text(FAULTY)
    return tmp_path


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})


def test_reward_in_order_is_examined_and_nothing_else(workplace: Path):
    done = doctor("reward=ocr")
    assert done.exit_code == 0, done.output
    for word in ("range", "0 to 1, higher is better", "good image 1.0000, worthless image 0.0000", "ms in a batch of 16",
                 "MiB", "onnxruntime", ".onnx", "sha256", "nothing"):  # fmt: skip
        assert word in done.output, word
    assert "embedded stack" not in done.output


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("dark", "ranks its worthless image (1) above its good one (0)"),
        ("broken", "has no score for the good image of its own calibration pair"),
        ("Big", 'reward "big": download big.pt from example.org'),
        ("alike", 'reward "alike" is constant: 0.25 for every image'),
        ("wild", 'reward "wild" fails on the good image: score 3 is not in [0, 1]'),
        ("unpaired", 'reward "unpaired" fails on the blue sign: score 2 is not in [0, 1]'),
        ("restless", 'reward "restless" is not deterministic'),
        ("crowded", 'reward "crowded" depends on the batch'),
    ],
)
def test_flagged_reward_gives_its_sentence_and_exit_status_1(workplace: Path, name: str, sentence: str):
    done = doctor(f"reward=faulty_rewards.py:{name}")
    assert done.exit_code == 1
    assert sentence in " ".join(done.output.replace("│", " ").split())
    assert "Traceback" not in done.output


def test_server_that_is_not_there_is_flagged_and_the_others_are_examined():
    parts = {"far": {"reward": "remote", "options": {"url": "http://127.0.0.1:9"}}, "ocr": {"options": {"layout": "line"}}}
    screen = console()
    assert not check_rewards(build_composite({"components": parts}), screen)
    assert "http://127.0.0.1:9: cannot be reached" in shown(screen)
    assert "good image 1.0000, worthless image 0.0000" in shown(screen)


def test_overrides_without_a_reward_are_refused(workplace: Path):
    done = doctor("reward.components.ocr.weight=2")
    assert done.exit_code == 1
    assert "name the reward once" in done.output


def test_plain_function_without_a_pair_is_no_fault_and_what_is_unknown_is_said():
    screen = console()
    plain = FunctionReward("plain", lambda images, prompts: [image.mean() for image in images], {})
    assert check_rewards(CompositeReward([Component("plain", plain)]), screen)
    for word in ("not examined", "it has no calibration pair", "give it a self_check", "loaded in", "ms in a batch of 16"):
        assert word in " ".join(shown(screen).replace("│", " ").split()), word
    assert "pair scored in" not in shown(screen)


def test_reward_whose_weights_are_not_here_is_no_fault_of_the_installation(monkeypatch: pytest.MonkeyPatch):
    class Absent(Reward):
        name, version, cost = "absent", "1", "nothing"

        def load(self) -> None:
            assert huggingface_hub.constants.HF_HUB_OFFLINE, "a look must not download"
            raise RewardUnavailableError('reward "absent": download it')

        def score(self, images: list[np.ndarray], prompts: Any) -> Any:
            raise AssertionError("must not be called")

        def self_check(self) -> Any:
            raise AssertionError("must not be called")

    class Told(Absent):
        name = "told"

        def __init__(self, url: str) -> None:
            self.url = url

    for entry in (Absent, Told):
        rewards.register(entry.name)(entry)
    try:
        by_name = {finding.name: finding for finding in reward_checks()}
    finally:
        for entry in (Absent, Told):
            rewards._entries.pop(entry.name)
    assert (by_name["absent"].value, by_name["absent"].ok) == ('not here: reward "absent": download it', None)
    assert (by_name["told"].value, by_name["told"].ok) == ("not checked: it needs the option url", None)


def test_hub_is_as_it_was_after_an_error():
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(KeyError), hub_offline():
        raise KeyError
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def training(folder: Path, reward: str) -> dict[str, Any]:
    """A configuration of one step on a tiny random stack."""
    return {
        "run": str(folder / "run"),
        "seed": 0,
        "model": {"path": "tiny_random"},
        "reward": {"components": {"mine": {"reward": reward}}},
        "algorithm": {"name": "grpo"},
        "prompts": {"set": "signs", "train_count": 2, "heldout_count": 0},
        "trainer": {"steps": 1, "prompts_per_step": 1, "group_size": 2, "trackers": []},
    }


@pytest.mark.parametrize(("name", "sentence"), [("broken", "own calibration pair"), ("Big", "download big.pt")])
def test_training_does_not_begin_with_a_reward_that_cannot_score(workplace: Path, name: str, sentence: str):
    with pytest.raises(RewardUnavailableError, match=sentence):
        run_training(training(workplace, f"faulty_rewards.py:{name}"), console=console())
    assert not (workplace / "run").exists()


def test_training_with_a_reward_that_ranks_wrongly_warns_and_records_it(workplace: Path):
    screen = console()
    run_training(training(workplace, "faulty_rewards.py:dark"), console=screen)
    assert "warning" in shown(screen)
    assert 'reward "mine" ranks its worthless image (1) above its good one (0)' in shown(screen)
    recorded = json.loads((workplace / "run" / "reward_checks.json").read_text())
    assert recorded["mine"]["scores"] == [0.0, 1.0]
    assert recorded["mine"]["errors"] == []
    assert recorded["mine"]["warnings"][0] in shown(screen)


def test_whole_checkpoint_is_in_order_and_one_without_flux_is_not(tmp_path: Path) -> None:
    checkpoint, flux = write_checkpoint(tmp_path / "xomni"), write_flux(tmp_path / "flux")
    console = Console(file=io.StringIO(), width=200)
    assert check_checkpoint(checkpoint, flux, console)
    assert not check_checkpoint(checkpoint, None, console)
    assert "needs FLUX.1-dev's VAE and text encoders" in shown(console)


def test_everything_that_a_flux_folder_lacks_is_named_at_once_beside_what_is_damaged(tmp_path: Path) -> None:
    checkpoint, flux = write_checkpoint(tmp_path / "xomni"), write_flux(tmp_path / "flux")
    for part in ("scheduler", "tokenizer_2"):
        shutil.rmtree(flux / part)
        (flux / part).mkdir()
    shutil.rmtree(flux / "vae")
    (flux / "text_encoder" / "config.json").write_text("{")
    console = Console(file=io.StringIO(), width=1000)
    assert not check_checkpoint(checkpoint, flux, console)
    lacking = (
        "scheduler/scheduler_config.json, tokenizer_2/tokenizer_config.json, tokenizer_2/tokenizer.json or spiece.model, vae"
    )
    assert f"{flux} lacks {lacking}: copy it again; {flux / 'text_encoder/config.json'} is damaged" in shown(console)


def test_folder_of_another_layout_is_no_published_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no published X-Omni checkpoint"):
        check_checkpoint(tmp_path, None)
