"""The command line as people use it: in-process where that is the same thing, as real processes where Hydra or signals are."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from xomni_rl import __version__
from xomni_rl.cli import app
from xomni_rl.commands.draw import contact_sheet, file_names, parse_size
from xomni_rl.commands.jobs import benchmarks, parse_options
from xomni_rl.config import ConfigError
from xomni_rl.experiments import benchmarks as benchmark_package
from xomni_rl.experiments.scoring import match_folder
from xomni_rl.images import NO_SAMPLES
from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.prompts import load_prompts
from xomni_rl.stack.stack import Stack

ROOT = Path(__file__).parents[1]
ALGORITHMS = ["batch", "best_of_n", "cispo", "clip_cov", "dapo", "dpo", "dr_grpo", "gdpo", "gmpo", "grpo", "gspo", "gspo_token"]
ALGORITHMS += ["kl_cov", "opo", "pass_at_k", "ppo", "reinforce", "reinforce_pp", "remax", "rloo", "sapo"]
COMMANDS = [
    "train",
    "ablate",
    "compare",
    "report",
    "generate",
    "chat",
    "score",
    "evaluate",
    "pretrain",
    "bench",
    "audit",
    "list",
    "doctor",
]


def invoke(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def assert_one_sentence(stderr: str, pattern: str) -> None:
    assert "Traceback" not in stderr
    [line] = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert re.search(pattern, line), line


@pytest.fixture(scope="module")
def stack_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stacks") / "tiny"
    Stack.tiny_random(seed=0).save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def signs(workplace: Path) -> Path:
    """A folder with two signs that say what they should, one that does not, and their prompts."""
    folder = workplace / "signs"
    folder.mkdir()
    lines = []
    for name, shown, wanted in (("a", "K7AX", "K7AX"), ("b", "MNPQ", "MNPQ"), ("c", "ZZZZ", "ABCD")):
        Image.fromarray(render_sign(shown, "blue")).save(folder / f"{name}.png")
        lines.append(json.dumps({"id": name, "text": f'a blue sign that says "{wanted}"'}))
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


# help, version, list


def test_help_names_every_command_and_gives_examples():
    shown = invoke("--help").stdout
    assert all(command in shown for command in COMMANDS)
    assert "xomni-rl train algorithm=dr_grpo" in shown


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "train"])
def test_help_of_every_command_teaches_with_examples(command: str):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.stdout
    assert "• xomni-rl" in result.stdout


def test_version_is_the_packages():
    assert invoke("--version").stdout == f"xomni-rl {__version__}\n"


def test_unknown_command_names_the_nearest_and_exits_2():
    result = invoke("trian")
    assert result.exit_code == 2
    assert "train" in result.stderr


def test_list_prints_name_file_and_line_in_columns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    heading, *lines = [line for line in invoke("list", "algorithms").stdout.splitlines() if line]
    assert heading == "algorithms"
    assert [line.split()[0] for line in lines] == ALGORITHMS
    assert [line.split()[1] for line in lines] == [f"policies/algorithms/{name}.py" for name in ALGORITHMS]
    shown = "GRPO: group-relative advantages, clipped token ratios (arXiv:2402.03300)."
    # the longest name is reinforce_pp: 12 letters, its file 35
    assert lines[ALGORITHMS.index("grpo")] == f"  {'grpo':12}  {'policies/algorithms/grpo.py':35}  {shown}"


def test_list_without_a_kind_prints_all_kinds_each_entry_with_an_existing_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    lines = invoke("list").stdout.splitlines()
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert headings == ["rewards", "algorithms", "prompts", "configs", "suites", "benchmarks"]
    entries = [re.fullmatch(r"  (\S+) +(\S+)  +(\S.*)", line) for line in lines if line.startswith(" ")]
    assert all(entry and (ROOT / entry.group(2)).is_file() for entry in entries)
    names = {entry.group(1) for entry in entries if entry}
    assert {"ocr", "grpo", "signs", "reward=ocr", "trainer=quick", "sampler"} <= names


def test_list_outside_the_repository_prints_whole_paths(workplace: Path):
    assert str(ROOT / "policies" / "algorithms" / "grpo.py") in invoke("list", "algorithms").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["bench"], ["train", "--cfg", "job"]])
def test_light_commands_load_neither_torch_nor_transformers(arguments: list[str]):
    code = (
        "import sys\nfrom xomni_rl.cli import app\ntry:\n    app(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'pandas'} & sys.modules.keys()), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, text=True, capture_output=True, check=True)
    assert ran.stderr.splitlines()[-1] == "[]"


# errors


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["list", "rewrads"], 'unknown kind to list "rewrads"; nearest: rewards'),
        (["bench", "smapler"], 'unknown benchmark "smapler"; nearest: sampler'),
        (["generate"], "no prompt: give one or more in quotes, or --prompts FILE"),
        (["generate", "x", "--size", "3a"], "--size must be height x width in pixels, such as 32x96, but is '3a'"),
        (["generate", "--prompts", "missing.jsonl"], "missing.jsonl: No such file or directory"),
        (["generate", "--prompts", "bad.jsonl"], r"bad\.jsonl:2: not JSON"),
        (["generate", "x", "--temperature", "0"], "temperature must be above 0"),
        (["generate", "x", "--stack", "bad.jsonl"], r"bad\.jsonl"),
        (["chat", "missing.png", "what?"], "missing.png: No such file or directory"),
        (["chat", "bad.jsonl", "what?"], r"bad\.jsonl.*image"),
        (["score", "nowhere"], "nowhere is no folder of images"),
        (["score", "."], r"there are no prompts at prompts\.jsonl; give --prompts FILE"),
        (["doctor", "--golden", "."], "neither a sub-folder 'autoregressive' nor 'image_tokenizer'"),
        (["train", "trainer.stpes=3"], 'unknown configuration key "trainer.stpes"; nearest: trainer.steps'),
        (["train", "algorithm=grop"], 'unknown choice of group algorithm, "grop"; nearest: grpo'),
        (["train", "trainer.steps=0"], "trainer.steps must be a whole number of at least 1, but is 0"),
        (["train", "algorithm.options.clip_low=2"], r"algorithm\.options\.clip_low must be in \[0, 1\], but is 2"),
        (["train", "algorithm.name=grop"], 'unknown algorithm "grop"; nearest: grpo'),
        (["train", "reward.components.ocr.reward=orc"], 'unknown reward "orc"; nearest: ocr'),
        (["train", "reward.components.ocr.options.metric=edt"], 'unknown metric "edt"; nearest: edit'),
        (["train", "resume=nowhere"], "nowhere"),
        (["train", "model=folder"], "model.path must be given: add model.path=VALUE"),
    ],
)
def test_user_error_is_one_sentence_on_stderr_and_status_1(workplace: Path, arguments: list[str], pattern: str):
    (workplace / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert_one_sentence(result.stderr, pattern)
    assert sorted(path.name for path in workplace.iterdir()) == ["bad.jsonl"], "an error must leave nothing behind"


def test_traceback_is_shown_on_request(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XOMNI_RL_TRACEBACK", "1")
    assert isinstance(invoke("generate").exception, ConfigError)
    assert "Could not override" in str(invoke("train", "trainer.stpes=3").exception)


def test_interrupt_exits_130_without_a_traceback(workplace: Path, stack_folder: Path):
    Image.fromarray(render_sign("K7AX", "red")).save(workplace / "sign.png")
    command = [sys.executable, "-m", "xomni_rl", "chat", "sign.png", "--stack", str(stack_folder)]
    with subprocess.Popen(
        command, cwd=workplace, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("What does the sign say?\n")
        process.stdin.flush()
        process.stdout.readline()  # the first answer: it now waits for the next question
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
        stderr = process.stderr.read()
    assert "Traceback" not in stderr
    assert "interrupted" in stderr


# generate, chat


def test_generate_writes_pictures_prompts_and_sheet_that_score_reads_back(workplace: Path, stack_folder: Path):
    result = invoke("generate", "a red sign", "a blue sign", "--count", "2", "--stack", str(stack_folder), "--out", "drawn")
    assert result.exit_code == 0, result.stderr
    assert "4 images in drawn" in result.stdout
    out = workplace / "drawn"
    names = ["0000_1", "0000_2", "0001_1", "0001_2"]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == sorted(
        [*(f"{name}.png" for name in names), "prompts.jsonl", "contact_sheet/grid.png", f"contact_sheet/{NO_SAMPLES}"]
    )
    assert len(match_folder(out, out / "prompts.jsonl", recursive=True).items) == 4  # the sheet is not one of them
    pairs = [(Path(item.path), item.prompt) for item in match_folder(out, out / "prompts.jsonl").items]
    assert [(path.stem, prompt.text) for path, prompt in pairs] == [
        *((name, "a red sign") for name in names[:2]),
        *((name, "a blue sign") for name in names[2:]),
    ]
    drawn = np.stack([np.asarray(Image.open(out / f"{name}.png")) for name in names])
    # 2 columns of 96 px and 2 rows of 32 px, with 4 px between and around: 204 × 76
    assert Image.open(out / "contact_sheet" / "grid.png").size == (204, 76)
    stack = Stack.from_pretrained(stack_folder)
    prompts = [each for _, each in pairs[::2]]
    again = stack.generate([type(p)(id=p.id[:4], text=p.text) for p in prompts], group_size=2, seed=0)
    np.testing.assert_array_equal(drawn, again.images)


def test_generate_takes_a_file_of_prompts_with_their_sizes(workplace: Path, stack_folder: Path):
    lines = [
        {"id": "wide", "text": "a red sign", "size": [16, 64]},
        {"text": "a sign", "texts": ["K7AX"], "metadata": {"k": 1}},
    ]
    (workplace / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = invoke("generate", "--prompts", "prompts.jsonl", "--stack", str(stack_folder), "--out", "drawn")
    assert result.exit_code == 0, result.stderr
    assert [Image.open(workplace / "drawn" / f"{name}.png").size for name in ("wide", "0001")] == [(64, 16), (96, 32)]
    read = load_prompts(workplace / "drawn" / "prompts.jsonl")
    assert read == load_prompts(workplace / "prompts.jsonl")
    assert read[1].metadata == {"k": 1}


def test_generate_with_size_of_no_whole_tokens_writes_nothing(workplace: Path, stack_folder: Path):
    result = invoke("generate", "a sign", "--size", "30x30", "--stack", str(stack_folder), "--out", "drawn")
    assert result.exit_code == 1
    assert_one_sentence(result.stderr, "30x30 is no multiple of the token size 8 px; the nearest is 32x32")
    assert not (workplace / "drawn").exists()


def test_generate_refuses_a_folder_with_other_pictures_but_replaces_its_own(workplace: Path, stack_folder: Path):
    arguments = ["generate", "a sign", "--stack", str(stack_folder), "--out", "drawn"]
    assert invoke(*arguments).exit_code == 0
    assert invoke(*arguments, "--seed", "1").exit_code == 0
    result = invoke(*arguments, "--count", "2")
    assert result.exit_code == 1
    assert_one_sentence(result.stderr, r"drawn holds other images already, such as 0000\.png")


def test_chat_answers_one_question_about_an_image_or_several(workplace: Path, stack_folder: Path):
    stack, signs = Stack.from_pretrained(stack_folder), [render_sign("K7AX", "red"), render_sign("MNPQ", "blue")]
    for name, sign in zip("ab", signs, strict=True):
        Image.fromarray(sign).save(workplace / f"{name}.png")
    one = invoke("chat", "a.png", "What does the sign say?", "--stack", str(stack_folder))
    assert one.exit_code == 0, one.stderr
    assert one.stdout == f"{stack.chat(signs[0], 'What does the sign say?')}\n"
    shown = [{"type": "image", "image": sign} for sign in signs]
    expected = stack.reply([{"role": "user", "content": [*shown, {"type": "text", "text": "Which is red?"}]}])
    asked = [["a.png", "b.png", "--question", "Which is red?"], ["a.png", "b.png", "Which is red?"]]
    for arguments in asked:
        assert invoke("chat", *arguments, "--stack", str(stack_folder)).stdout == f"{expected}\n"


def test_chat_without_a_question_is_a_conversation_that_ends_with_an_empty_line(workplace: Path, stack_folder: Path):
    stack, signs = Stack.from_pretrained(stack_folder), [render_sign("K7AX", "red"), render_sign("MNPQ", "blue")]
    for name, sign in zip("ab", signs, strict=True):
        Image.fromarray(sign).save(workplace / f"{name}.png")
    shown = [{"type": "image", "image": sign} for sign in signs]
    turns = [{"role": "user", "content": [shown[0], {"type": "text", "text": "What does it say?"}]}]
    first = stack.reply(turns)
    turns += [{"role": "assistant", "content": first}]
    turns += [{"role": "user", "content": [shown[1], {"type": "text", "text": "And this?"}]}]
    lines = "What does it say?\n/image b.png\nAnd this?\n\nnot any more\n"
    said = invoke("chat", "a.png", "--stack", str(stack_folder), stdin=lines)
    assert said.exit_code == 0, said.stderr
    assert said.stdout == f"{first}\n{stack.reply(turns)}\n"
    failed = invoke("chat", "--stack", str(stack_folder), stdin="/image c.png\n")
    assert_one_sentence(failed.stderr, r"c\.png: No such file or directory")


def test_file_names_are_safe_and_never_collide():
    assert file_names(["0000", "a/b c"], 1) == ["0000", "a-b-c"]
    assert file_names(["a/b", "a:b"], 1) == ["0000", "0001"]
    assert file_names(["A", "a"], 1) == ["0000", "0001"], "some file systems fold case"
    assert file_names(["..", "b"], 2) == ["0000_1", "0000_2", "0001_1", "0001_2"]


def test_contact_sheet_places_every_picture():
    images = [np.full((2, 3, 3), shade, np.uint8) for shade in (10, 20, 30)]
    # columns 2 → 2 rows: height 2·(2 + 1) + 1 = 7, width 2·(3 + 1) + 1 = 9
    page = contact_sheet(images, columns=2, gap=1)
    assert page.shape == (7, 9, 3)
    assert [page[1, 1, 0], page[1, 5, 0], page[4, 1, 0], page[4, 5, 0]] == [10, 20, 30, 255]


def test_sizes_are_height_times_width():
    assert [parse_size("32x96"), parse_size("32×96"), parse_size(None)] == [(32, 96), (32, 96), None]


# score, bench, doctor, pretrain


def test_score_finds_prompts_among_the_pictures_and_writes_the_table_there(signs: Path):
    result = invoke("score", str(signs), "--reward", "ocr", "--option", "ocr.metric=exact", "--option", "ocr.layout=line")
    assert result.exit_code == 0, result.stderr
    table = (signs / "scores.csv").read_text().splitlines()
    column = table[0].split(",").index("ocr")
    # signs a and b say what they should, c says ZZZZ instead of ABCD
    assert [line.split('"')[-1].split(",")[column - 2] for line in table[1:]] == ["1.0", "1.0", "0.0"]


def test_score_with_a_damaged_picture_scores_the_rest_and_exits_1(signs: Path):
    (signs / "b.png").write_bytes(b"not a picture")
    result = invoke("score", str(signs), "--out", str(signs / "scores.jsonl"), "--option", "ocr.layout=line")
    assert result.exit_code == 1
    assert "b.png" in "".join(result.stdout.split())  # a long path is wrapped
    rows = [json.loads(line) for line in (signs / "scores.jsonl").read_text().splitlines()]
    assert [row["ocr"] is not None for row in rows] == [True, False, True]


def test_score_options_read_as_yaml_and_name_their_reward(signs: Path):
    assert parse_options(["ocr.metric=exact", "ocr.workers=2", "my.mod:r.flag=true"]) == {
        "ocr": {"metric": "exact", "workers": 2},
        "my.mod:r": {"flag": True},
    }
    with pytest.raises(ConfigError, match=r"--option must read REWARD\.KEY=VALUE"):
        parse_options(["metric=exact"])
    assert_one_sentence(invoke("score", str(signs), "--option", "orc.metric=edit").stderr, 'in --option "orc"; nearest: ocr')


def test_bench_without_a_name_lists_every_benchmark():
    result = invoke("bench")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == list(benchmarks())
    assert all(line for _, line in benchmarks().values())


def test_bench_ends_with_one_line_of_json_with_the_ratio(workplace: Path, monkeypatch: pytest.MonkeyPatch):
    lines = ['"""Heads against tails."""', "import numpy as np", "def run():", "    print('heads | tails')"]
    (workplace / "coin.py").write_text("\n".join([*lines, "    return {'ratio': np.float32(1.5), 'heads': 3, 'tails': 2}"]))
    monkeypatch.setattr(benchmark_package, "__path__", [*benchmark_package.__path__, str(workplace)])
    assert "  coin      coin.py" in invoke("bench").stdout
    result = invoke("bench", "coin")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == 'heads | tails\n{"ratio": 1.5, "heads": 3, "tails": 2}\n'


def test_pretrain_into_the_work_of_another_seed_is_refused(workplace: Path):
    (workplace / "mine" / "pretraining").mkdir(parents=True)
    (workplace / "mine" / "pretraining" / "recipe.json").write_text('{"seed": 5}')
    result = invoke("pretrain", "--out", "mine", "--seed", "0")
    assert result.exit_code == 1
    assert_one_sentence(result.stderr, "mine")


def test_doctor_finds_the_embedded_stack_and_every_reward_in_order():
    result = invoke("doctor")
    assert result.exit_code == 0, result.stdout
    assert "not in order" not in result.stdout
    assert all(word in result.stdout for word in ("torch", "autoregressive", "image_tokenizer", "decoder", "ocr"))
