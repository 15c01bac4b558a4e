"""The command's output, and the page that shows it."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xomni_rl.cli import app
from xomni_rl.experiments.planning.show import BLOCK, DOCS, main, page, printed

MAKE = "make it with: python -m xomni_rl.experiments.planning.show"


def test_page_shows_what_the_command_prints() -> None:
    text = DOCS.read_text(encoding="utf-8")
    commands = [found[1] for found in BLOCK.finditer(text)]
    assert any(command.startswith("xomni-rl plan model=xomni_7b trainer=fsdp2 gpus=8x80GB") for command in commands)
    assert page(text) == text, MAKE
    assert all(f"\n{command}\n" in text for command in commands)  # in a block that people can copy


def test_check_names_a_page_that_is_out_of_date_and_writing_puts_it_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "planning.md"
    file.write_text("before\n<!-- xomni-rl plan -->\n```text\nold\n```\nafter\n")
    assert main(["--check", "--file", str(file)]) == 1
    assert capsys.readouterr().out == f"{file} is out of date\n"
    assert main(["--file", str(file)]) == 0
    assert main(["--check", "--file", str(file)]) == 0
    assert file.read_text() == f"before\n<!-- xomni-rl plan -->\n```text\n{printed([])}```\nafter\n"


def test_command_prints_parts_total_head_room_and_seconds() -> None:
    ran = CliRunner().invoke(app, ["plan", "gpus=RTX4090"])
    assert ran.exit_code == 0, ran.output
    for words in ("weights", "AdamW moments", "KV cache", "activations", "head-room", "It fits", "total without rewards"):
        assert words in ran.output


def test_json_has_the_figures_of_the_table() -> None:
    ran = CliRunner().invoke(app, ["plan", *shlex.split("model=xomni_7b trainer=fsdp2 gpus=8x80GB reward=paper --json")])
    assert ran.exit_code == 0, ran.output
    figures = json.loads(ran.output)
    assert figures["parameters"] == 9_597_981_696
    assert figures["resident"]["weights"] == 2 * 9_597_981_696
    assert not figures["fits"]
    assert figures["totals"][figures["fullest"]] == figures["peak"] > figures["usable"]
    assert figures["advice"][-1]["peak"] <= figures["usable"]
    assert set(figures["seconds"]) >= {"sampling", "decoding", "update"}


def test_total_is_the_sum_of_its_column() -> None:
    lines = printed(["model=xomni_7b", "trainer=fsdp2", "gpus=8x80GB"]).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(" part "))
    end = next(i for i, line in enumerate(lines) if line.startswith(" total "))
    last = [re.split(r"\s{2,}", line.strip()) for line in lines[start + 2 : end] if line.strip()]
    optimizer = sum(float(row[-1]) for row in last if len(row) > 1 and row[0] in HELD)
    assert optimizer == pytest.approx(float(lines[end].split()[-1]), abs=0.4)  # each is rounded


HELD = (
    "weights",
    "divided copy",
    "AdamW moments",
    "image tokenizer",
    "CUDA",
    "optimizer's temporaries",
    "gradients",
)


def test_error_is_a_sentence() -> None:
    ran = CliRunner().invoke(app, ["plan", "gpus=8xH1000"])
    assert ran.exit_code == 1
    assert "unknown kind of GPU" in ran.output
