"""Mixtures: exact shares, ids, repetitions across sources, held-out prompts kept out of training, a run on one."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.envs.options import make_prompts
from xomni_rl.experiments.run import run_training
from xomni_rl.prompt_sets.cleaning import PromptWarning, normal_text
from xomni_rl.prompt_sets.shares import whole_shares
from xomni_rl.prompts import Prompt, PromptError, prompt_sets

REWARDS = Path(__file__).parents[1] / "policies" / "cheap_rewards.py"
TWO = {"text": {"set": "text_rendering", "weight": 3}, "signs": {}}


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def mixed(split: str = "train", count: int = 100, seed: int = 0, **options: Any) -> list[Prompt]:
    return prompt_sets.get("mixture")(split=split, count=count, seed=seed, **options)


def file_source(path: str, **options: Any) -> dict[str, Any]:
    return {"set": "file", "options": {"path": path, "heldout_share": 1e-9} | options}


def sources_of(found: list[Prompt]) -> Counter[str]:
    return Counter(p.metadata["source"] for p in found)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_shares_are_exact_ids_unique_and_the_source_is_known(split: str) -> None:
    found = mixed(split, sources=TWO)
    assert sources_of(found) == {"text": 75, "signs": 25}
    assert len({p.id for p in found}) == len({normal_text(p.text) for p in found}) == 100
    assert found == mixed(split, sources=TWO)
    assert found != mixed(split, seed=1, sources=TWO)
    assert all(p.id.startswith(f"{p.metadata['source']}-") for p in found)
    assert {p.metadata["scene"] for p in found if p.metadata["source"] == "text"} > {"poster"}  # metadata of its own stays


@settings(deadline=None, max_examples=30)
@given(st.tuples(*[st.integers(0, 9)] * 3).filter(any), st.integers(0, 80), st.integers(0, 1000))
def test_any_weights_give_the_largest_remainders_shares_and_the_seed_decides(
    weights: tuple[int, ...], count: int, seed: int
) -> None:
    sources = {name: {"set": "signs", "weight": weight} for name, weight in zip("abc", weights, strict=True)}
    found = mixed("heldout", count, seed, sources=sources)
    shares = whole_shares(dict(zip("abc", weights, strict=True)), count)
    assert sources_of(found) == {name: share for name, share in shares.items() if share}
    assert found == mixed("heldout", count, seed, sources=sources)
    # Sources of one set have other prompts each.
    assert len({normal_text(p.text) for p in found}) == len({p.id for p in found}) == count


def test_every_stretch_has_about_its_share() -> None:
    found = mixed(count=400, sources=TWO)
    for start in range(0, 400, 40):
        # Prompt j of k stands at (j + u)/k of the list: of 40 places 30 are text's, and each end may shift by one.
        assert abs(sources_of(found[start : start + 40])["text"] - 30) <= 3


def test_text_that_two_sources_have_is_kept_once_and_made_up_for(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", *[f"prompt {i}" for i in range(20)])
    second = write(tmp_path / "b.txt", *[f"Prompt {i}!" for i in range(10, 60)])
    sources = {"a": file_source(first), "b": file_source(second)}
    found = mixed(count=40, sources=sources)
    # All 20 of a are taken; b has 50, ten of which are a's: 40 are left for its share of 20.
    assert sources_of(found) == {"a": 20, "b": 20}
    assert len({normal_text(p.text) for p in found}) == 40
    kept_twice = mixed(count=40, sources=sources, deduplicate=False)
    assert sources_of(kept_twice) == {"a": 20, "b": 20}


def test_small_source_is_gone_through_again_in_training_and_shortens_the_heldout_split(tmp_path: Path) -> None:
    few = write(tmp_path / "few.txt", "one", "two", "three")
    sources = {"few": file_source(few, heldout_path=write(tmp_path / "h.txt", "four", "five")), "signs": {}}
    with pytest.warns(PromptWarning, match="mixture, train: fewer prompts than their share: few has 3; gone through again"):
        found = mixed(count=14, sources=sources)
    # A share of 7 over three prompts: two rounds and one more.
    own = [p for p in found if p.metadata["source"] == "few"]
    assert Counter(p.text for p in own).most_common() == [(own[0].text, 3), (own[1].text, 2), (own[2].text, 2)]
    assert [p.id.partition("-again")[2] for p in own] == ["", "", "", "1", "1", "1", "2"]
    assert len({p.id for p in found}) == 14
    with pytest.warns(PromptWarning, match="few has 2; the split has 4 prompts, not 14"):
        # Of 5 each would have 2.5 and the first in order 3, but there are two: 4 is the most.
        heldout = mixed("heldout", 14, sources=sources)
    assert sources_of(heldout) == {"few": 2, "signs": 2}


def test_training_has_no_heldout_prompt_of_any_source(tmp_path: Path) -> None:
    captions = write(tmp_path / "a.txt", *[f"caption {i}" for i in range(50)])
    evaluation = write(tmp_path / "h.txt", "CAPTION 7.", "caption, 9")
    other = file_source(write(tmp_path / "b.txt", "x", "y"), heldout_path=evaluation)
    with pytest.warns(PromptWarning, match="2 used for evaluation"):
        found = mixed(count=100, sources={"a": file_source(captions) | {"weight": 24}, "b": other | {"weight": 1}})
    assert {p.text for p in found} == {f"caption {i}" for i in range(50) if i not in (7, 9)} | {"x", "y"}


def test_heldout_sources_replace_the_heldout_splits_and_are_kept_out_of_training(tmp_path: Path) -> None:
    line = '{"tag": "single_object", "include": [{"class": "cat"}], "prompt": "a cat"}'
    geneval = {"set": "geneval", "options": {"path": write(tmp_path / "g.jsonl", line)}}
    sources = {"a": file_source(write(tmp_path / "a.txt", "A cat.", "a dog", "a hen"))}
    with pytest.warns(PromptWarning, match="1 used for evaluation"):
        assert {p.text for p in mixed(count=2, sources=sources, heldout_sources={"a": geneval})} == {"a dog", "a hen"}
    (prompt,) = mixed("heldout", 1, sources=sources, heldout_sources={"a": geneval})
    assert (prompt.id, prompt.checks, prompt.metadata["source"]) == ("heldout-a-00000", ({"class": "cat"},), "a")


def test_cleaning_holds_for_all_sources(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", *[f"prompt number {i}" for i in range(30)], "short")
    sources = {"text": {"set": "text_rendering", "options": {"strings": [1, 1]}}, "a": file_source(path)}
    found = mixed(count=20, sources=sources, languages=["en"], min_characters=6, max_characters=90)
    assert sources_of(found) == {"text": 10, "a": 10}
    assert all(p.language == "en" and 6 <= len(p.text) <= 90 for p in found)


def test_source_without_prompts_is_named(tmp_path: Path) -> None:
    sources = {"zh": {"set": "text_rendering", "options": {"languages": {"zh": 1}}}, "signs": {}}
    with pytest.raises(
        PromptError, match=r'source "zh" of the mixture has no prompt for the split train \(\d+ in another language\)'
    ):
        mixed(sources=sources, languages=["en"])
    bad = file_source(write(tmp_path / "a.jsonl", "{"))
    with pytest.raises(PromptError, match=r'source "bad" of the mixture: .*a\.jsonl:1: not JSON'):
        mixed(sources={"bad": bad, "signs": {}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, 'prompt set "mixture" needs sources'),
        ({"sources": TWO, "split": "test"}, "split must be train or heldout"),
        ({"sources": {"a": 3}}, "sources.a must be {set: NAME, weight: NUMBER"),
        ({"sources": {"a": {"wieght": 3}}}, 'unknown key of sources.a: "wieght"; nearest: weight'),
        ({"sources": {"signs": {"weight": -1}}}, 'the weight of "signs" must be a number from 0, got -1'),
        ({"sources": {"signs": {"weight": 0}}}, "a weight above 0"),
        ({"sources": {"my-signs": {"set": "signs"}}}, 'letters, digits and underscores, and not heldout, got "my-signs"'),
        ({"sources": TWO, "malformed": "skip"}, "malformed belongs to the options of a source"),
        ({"sources": TWO, "wieghts": 1}, 'unknown option of prompt set "mixture": "wieghts"'),
    ],
)
def test_bad_option_is_a_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixed(**options)


def test_unknown_set_of_a_source_is_answered_with_the_nearest() -> None:
    with pytest.raises(KeyError, match='unknown prompt set "sings"; nearest: signs'):
        mixed(sources={"sings": {}})


def test_environment_takes_a_mixture() -> None:
    found = make_prompts({"set": "mixture", "count": 4, "options": {"sources": TWO}})
    assert sources_of(found) == {"text": 3, "signs": 1}


def test_two_steps_train_on_a_mixture(tmp_path: Path) -> None:
    sources = {
        "text": {"set": "text_rendering", "weight": 3, "options": {"size": [16, 32]}},
        "own": file_source(write(tmp_path / "a.jsonl", *[f'{{"text": "sign {i}", "size": [16, 32]}}' for i in range(9)])),
    }
    heldout = {"text": sources["text"]}
    config = {
        "run": str(tmp_path / "run"),
        "seed": 0,
        "model": {"path": "tiny_random"},
        "reward": {"components": {"red": {"reward": f"{REWARDS}:redness"}}},
        "algorithm": {"name": "grpo", "options": {}},
        "prompts": {
            "set": "mixture",
            "options": {"sources": sources, "heldout_sources": heldout},
            "train_count": 8,
            "heldout_count": 2,
        },
        "trainer": {"steps": 2, "prompts_per_step": 4, "group_size": 2, "trackers": [], "evaluation": {"grid_prompts": 2}},
    }
    summary = run_training(config)
    assert (summary.status, summary.steps) == ("finished", 2)
