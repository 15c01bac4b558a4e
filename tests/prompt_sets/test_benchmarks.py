"""Sets of benchmark files: GenEval, LongText-Bench, DPG-Bench, in the published formats and from the published files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from xomni_rl.prompt_sets.cleaning import PromptWarning
from xomni_rl.prompts import Prompt, PromptError, prompt_sets
from xomni_rl.rewards.rule_checks import parse_checks
from xomni_rl.rewards.text_metrics import longtext_counts

GENEVAL_LINES = (
    {
        "tag": "counting",
        "include": [{"class": "fork", "count": 2}],
        "exclude": [{"class": "fork", "count": 3}],
        "prompt": "two forks",
    },
    {
        "tag": "position",
        "include": [
            {"class": "cup", "count": 1, "color": "red"},
            {"class": "cat", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a cat left of a red cup",
    },
)


def heldout(name: str, path: Path, **options: Any) -> dict[str, Prompt]:
    found = prompt_sets.get(name)(**{"split": "heldout", "count": 1000, "seed": 0, "path": path} | options)
    return {prompt.id: prompt for prompt in found}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)}\n" for r in records), "utf-8")
    return path


def test_geneval_line_becomes_checks_that_the_rules_reward_reads(tmp_path: Path) -> None:
    found = heldout("geneval", write(tmp_path / "g.jsonl", *GENEVAL_LINES))
    assert found["00000"].checks == ({"class": "fork", "count": 2}, {"class": "fork", "count": 3, "exclude": True})
    assert found["00001"].checks == tuple(GENEVAL_LINES[1]["include"])
    assert found["00001"].metadata == {"tag": "position"}


def test_every_published_geneval_prompt_is_loaded_and_its_checks_are_understood(benchmarks: Path) -> None:
    found = heldout("geneval", benchmarks / "geneval.jsonl")
    # Section 3 of the paper: 80 single objects, 99 pairs, 80 counts, 94 colours, 100 positions, 100 colour attributions.
    assert Counter(p.metadata["tag"] for p in found.values()) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    assert sum(len(parse_checks(p.checks)) for p in found.values()) == sum(len(p.checks) for p in found.values())
    # Every counting prompt excludes one more; nothing else excludes.
    assert sum(check.get("exclude", False) for p in found.values() for check in p.checks) == 80


def test_every_published_long_text_prompt_is_loaded_with_texts_that_can_be_counted(benchmarks: Path) -> None:
    found = heldout("longtext_bench", benchmarks / "longtext_bench")
    assert Counter(p.language for p in found.values()) == {"en": 160, "zh": 160}
    # Ids are the published numbers, which have gaps.
    lines = (benchmarks / "longtext_bench" / "zh.jsonl").read_text(encoding="utf-8").splitlines()
    assert {f"zh-{json.loads(line)['prompt_id']:04d}" for line in lines} == {key for key in found if key.startswith("zh")}
    assert all(longtext_counts("", p.texts, p.language)[1] for p in found.values())
    assert len(heldout("longtext_bench", benchmarks / "longtext_bench" / "zh.jsonl")) == 160


def test_dpg_bench_prompts_are_the_files_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "12.txt").write_text("a long\nprompt\n")
    (tmp_path / "COCO_7.txt").write_text("another")
    assert {key: p.text for key, p in heldout("dpg_bench", tmp_path).items()} == {"12": "a long prompt", "COCO_7": "another"}
    (tmp_path / "3.txt").write_text(" \n")
    with pytest.raises(PromptError, match=r"3\.txt:1: text must not be empty"):
        heldout("dpg_bench", tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("geneval", "{", "not JSON"),
        ("geneval", {"tag": "x", "include": []}, 'the key "prompt" is missing'),
        ("geneval", {"tag": "x", "include": {}, "prompt": "a"}, '"include" must be a list of objects with a "class", got {}'),
        ("geneval", {"tag": "x", "include": [], "exclude": [{"count": 1}], "prompt": "a"}, '"exclude" must be a list'),
        ("longtext_bench", {"prompt": "a", "text": ["b"]}, 'the key "prompt_id" is missing'),
        ("longtext_bench", {"prompt": "a", "text": "b", "prompt_id": 3}, "texts must be a list of strings, got 'b'"),
        ("longtext_bench", {"prompt": 5, "text": ["b"], "prompt_id": 3}, '"prompt" a string, got 3 and 5'),
    ],
)
def test_malformed_line_is_refused_or_skipped_by_choice(tmp_path: Path, name: str, line: Any, reason: str) -> None:
    good = {"geneval": GENEVAL_LINES[0], "longtext_bench": {"prompt": "one", "text": ["A"], "prompt_id": 1}}[name]
    path = write(tmp_path / "b.jsonl", good, line)
    with pytest.raises(PromptError) as refused:
        heldout(name, path)
    assert str(refused.value).startswith(f"{path}:2: ")
    assert reason in str(refused.value)
    with pytest.warns(PromptWarning, match="1 malformed"):
        assert len(heldout(name, path, malformed="skip")) == 1


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("geneval", r"evaluation_metadata\.jsonl of github\.com/djghosh13/geneval"),
        ("longtext_bench", "X-Omni/LongText-Bench"),
        ("dpg_bench", r"github\.com/TencentQQGYLab/ELLA"),
    ],
)
def test_missing_file_says_where_such_files_come_from(tmp_path: Path, name: str, origin: str) -> None:
    with pytest.raises(PromptError, match=rf"none: there is no such file or folder; .*{origin}"):
        heldout(name, tmp_path / "none")
    with pytest.raises(ValueError, match=f'prompt set "{name}" needs path.*{origin}'):
        prompt_sets.get(name)("heldout", 1, 0)


def test_benchmark_is_not_trained_on_unless_a_part_is_given_up(tmp_path: Path) -> None:
    lines = [{"tag": "single_object", "include": [{"class": f"c{i}"}], "prompt": f"a photo of a c{i}"} for i in range(200)]
    path = write(tmp_path / "g.jsonl", *lines)
    with pytest.raises(PromptError, match=r"geneval is a benchmark and held out whole; .*heldout_share=0\.5"):
        heldout("geneval", path, split="train")
    train, rest = (heldout("geneval", path, split=split, heldout_share=0.5) for split in ("train", "heldout"))
    # 200 texts at a share of 0.5: 100 expected, standard deviation 7.1; within 4 of those.
    assert 71 <= len(train) <= 129
    assert len(train) + len(rest) == 200
    assert not set(train) & set(rest)
