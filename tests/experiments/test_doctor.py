"""The doctor says what is wrong, and only then."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from xomni_rl.experiments.doctor import check_golden, embedded_stack, machine, reward_checks
from xomni_rl.stack.stack import StackError

GOLDEN = Path(__file__).parents[1] / "golden"


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
