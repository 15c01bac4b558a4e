"""The documents are true: their Python runs, their commands exist, their links lead somewhere.

`tests/README.md` says how a comment before a block changes what is done with it.
"""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "envs", "experiments", "policies", "rewards", "tests", "xomni_rl")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
FENCE = re.compile(r"^```(\w*)\s*$")
TREATMENT = re.compile(r"^<!-- test: (file|run|syntax)(?: (.*?))? -->$")
HARMLESS = {"cd", "export", "git", "pip", "source"}
RUN_BLOCKS = """
import json, sys
path, blocks = json.load(sys.stdin)
namespace = {"__name__": "__main__"}
for line, source in blocks:
    exec(compile("\\n" * line + source, path, "exec"), namespace)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: language, text, line of its opening fence (from 1), treatment and the treatment's argument."""

    path: Path
    line: int
    language: str
    text: str
    treatment: str = ""
    argument: str = ""


def read_blocks(text: str, path: Path) -> Iterator[Block]:
    """The fenced blocks of a document, each with the comment on the line before it."""
    lines = text.splitlines()
    position = 0
    while position < len(lines):
        fence = FENCE.match(lines[position])
        if fence:
            end = lines.index("```", position + 1)
            comment = TREATMENT.match(lines[position - 1]) if position else None
            treatment, argument = (comment[1], comment[2] or "") if comment else ("", "")
            body = "\n".join(lines[position + 1 : end])
            yield Block(path, position + 1, fence[1], body, treatment, argument)
            position = end
        position += 1


def name_of(value: object) -> str:
    if isinstance(value, Path):
        return str(value.relative_to(ROOT))
    return f"{value.path.relative_to(ROOT)}:{value.line}" if isinstance(value, Block) else str(value)


BLOCKS = [block for path in DOCUMENTS for block in read_blocks(path.read_text(encoding="utf-8"), path)]
PYTHON = [path for path in DOCUMENTS if any(b.path == path and b.language == "python" for b in BLOCKS)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh", "shell", "console")]


def environment() -> dict[str, str]:
    """The caller's, with the interpreter's folder first in the search path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def run(command: list[str], folder: Path, text: str | None = None) -> str:
    """Output of a command that must succeed within ten minutes."""
    done = subprocess.run(
        command, cwd=folder, input=text, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def commands(block: Block) -> Iterator[list[str]]:
    """The words of every command of a shell block; continued lines are joined, comments left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def composed(words: list[str]) -> Iterator[list[str]]:
    """`xomni-rl train …` as commands that only print the configuration, one per choice of a sweep."""
    overrides = [word for word in words[2:] if word not in ("-m", "--multirun", "--cfg", "job")]
    if set(words) & {"-m", "--multirun"}:
        choices = [
            [f"{key}={value}" for value in values.split(",")] for key, _, values in (o.partition("=") for o in overrides)
        ]
        longest = max(map(len, choices))
        variants = [[choice[min(i, len(choice) - 1)] for choice in choices] for i in range(longest)]
    else:
        variants = [overrides]
    for variant in variants:
        yield [*words[:2], *variant, "--cfg", "job"]


def check_command(words: list[str], folder: Path) -> None:
    """Fails unless the command exists and takes these arguments."""
    program = Path(words[0]).name
    if program in HARMLESS:
        return
    if program == "make":
        assert set(words[1:]) - {word for word in words if "=" in word} <= TARGETS, f"{words}: no such target"
    elif program == "xomni-rl" and words[1] == "train":
        for command in composed(words):
            assert "trainer:" in run(command, folder)
    elif program == "xomni-rl":
        help_text = run([words[0], words[1], "--help"], folder)
        unknown = {word.partition("=")[0] for word in words[2:] if word.startswith("--")} - set(
            re.findall(r"--[\w-]+", help_text)
        )
        assert not unknown, f"xomni-rl {words[1]} has no {unknown}"
    elif program == "python" and words[1] == "-m":
        check_module(words[2:], folder)
    else:
        pytest.fail(f"no check for {shlex.join(words)}: is it a command of ours?")


def check_module(words: list[str], folder: Path) -> None:
    """`python -m MODULE …`: pytest's arguments name folders that exist; our own modules know their options."""
    if words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests"))
        return
    assert words[0].split(".")[0] == "xomni_rl", f"{words[0]} is no module of ours"
    help_text = run([sys.executable, "-m", words[0], "--help"], folder)
    unknown = {word for word in words[1:] if word.startswith("--")} - set(re.findall(r"--[\w-]+", help_text))
    assert not unknown, f"{words[0]} has no {unknown}"


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    """Targets of inline links and images outside fenced blocks and code spans."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"`[^`\n]*`", "`code`", prose)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


@pytest.mark.slow
@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_python_of_a_document_runs(path: Path, tmp_path: Path) -> None:
    blocks = [block for block in BLOCKS if block.path == path]
    for block in blocks:
        if block.treatment == "file":
            (tmp_path / block.argument).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.argument).write_text(block.text + "\n")
        elif block.language == "python":
            compile("\n" * block.line + block.text, str(path), "exec")
    runnable = [(b.line, b.text) for b in blocks if b.language == "python" and b.treatment not in ("file", "syntax")]
    run([sys.executable, "-c", RUN_BLOCKS], tmp_path, json.dumps([str(path), runnable]))


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in SHELL if block.treatment != "run"], ids=name_of)
def test_command_of_a_document_exists_and_takes_its_arguments(block: Block, tmp_path: Path) -> None:
    for words in commands(block):
        check_command(words, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", [block for block in SHELL if block.treatment == "run"], ids=name_of)
def test_command_of_a_document_succeeds(block: Block, tmp_path: Path) -> None:
    for other in BLOCKS:
        if other.path == block.path and other.treatment == "file":
            (tmp_path / other.argument).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / other.argument).write_text(other.text + "\n")
    for words in commands(block):
        is_training = words[0] == "xomni-rl" and words[1] == "train"
        run([*words, *(shlex.split(block.argument) if is_training else [])], tmp_path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_link_of_a_document_leads_somewhere(path: Path) -> None:
    for link in links(path.read_text(encoding="utf-8")):
        target = urllib.parse.urlsplit(link)
        if target.scheme:
            assert target.scheme == "https", f"{link}: neither a path nor https"
            continue
        found = (path.parent / target.path).resolve() if target.path else path
        assert found.exists(), f"{link} leads nowhere"
        if target.fragment:
            assert target.fragment in anchors(found.read_text(encoding="utf-8")), f"{link}: no such heading"


def test_every_room_has_a_document() -> None:
    rooms = [folder for folder in ROOT.rglob("__init__.py") if not set(folder.parts) & {".venv", "build", "weights"}]
    assert rooms
    assert [str(room.parent) for room in rooms if not (room.parent / "README.md").exists()] == []


def test_blocks_and_treatments_are_found() -> None:
    text = "<!-- test: run a=1 b=2 -->\n```bash\nmake test\n```\n```python\nx = 1\n```\n"
    first, second = read_blocks(text, ROOT / "x.md")
    assert (first.language, first.treatment, first.argument, first.line) == ("bash", "run", "a=1 b=2", 2)
    assert (second.text, second.treatment, second.line) == ("x = 1", "", 5)


def test_sweep_is_composed_once_per_longest_list() -> None:
    variants = list(composed(shlex.split("xomni-rl train -m algorithm=grpo,dr_grpo seed=0,1,2 run=x")))
    assert [words[2:5] for words in variants] == [
        ["algorithm=grpo", "seed=0", "run=x"],
        ["algorithm=dr_grpo", "seed=1", "run=x"],
        ["algorithm=dr_grpo", "seed=2", "run=x"],
    ]


def test_links_in_code_are_not_links() -> None:
    assert links("[a](b.md) `[c](d.md)`\n```\n[e](f.md)\n```\n") == ["b.md"]


@pytest.mark.parametrize(
    "command",
    ["make nothing", "frobnicate", "python -m json.tool", "python -m xomni_rl.experiments.report.picture --nothing x"],
)
def test_command_that_does_not_exist_is_found(command: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_command(shlex.split(command), tmp_path)


def test_treatments_are_spelled_as_documented() -> None:
    comments = itertools.chain.from_iterable(
        (line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("<!-- test:")) for path in DOCUMENTS
    )
    assert [line for line in comments if not TREATMENT.match(line)] == []
