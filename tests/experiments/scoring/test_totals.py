"""The total of a mix beside its components: the composite's average, of raw scores, where all that decides it is there."""

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xomni_rl.experiments.scoring import score_folder
from xomni_rl.experiments.scoring.matching import Item, without_prompts
from xomni_rl.experiments.scoring.scorers import Choice, Scored, build_scorers, choice_of, score_batch
from xomni_rl.images import load_image
from xomni_rl.prompt_sets.signs import render_sign
from xomni_rl.rewards.composite import build_composite

REWARDS = """
from math import nan
from xomni_rl.rewards.base import reward
def table(prompts, values):
    if any(values[prompt.id] is None for prompt in prompts):
        raise OSError("judge is away")
    return [values[prompt.id] for prompt in prompts]
@reward(range=(0, 1))
def first(images, prompts):
    return table(prompts, {"p0.png": 0.5, "p1.png": nan, "p2.png": 0.9, "p3.png": 0.2})
@reward(range=(0, 4), higher_is_better=False)
def second(images, prompts):
    return table(prompts, {"p0.png": 2.0, "p1.png": 3.0, "p2.png": None, "p3.png": 1.0})
@reward(range=(0, 1))
def logged(images, prompts):
    return table(prompts, {"p0.png": None, "p1.png": 1.0, "p2.png": 1.0, "p3.png": 0.0})
"""
NAMES = ("first", "second", "logged")
TOTAL: dict[str, Any] = {
    "components": {
        "first": {"weight": 1.0, "cap": None},
        "second": {"weight": 0.5, "cap": 1.5},
        "logged": {"weight": 0.0, "cap": None},
    },
    "gates": {},
}


@pytest.fixture
def items(make_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Item]:
    (tmp_path / "graded.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "graded", raising=False)
    return without_prompts(make_folder(count=4))


def scored(items: list[Item], total: dict[str, Any]) -> Scored:
    components = {name: {"reward": f"graded:{name}", "options": {}} for name in NAMES}
    return score_batch(build_scorers(Choice(components, {"mix": total})), items)


def test_total_is_the_average_of_turned_and_capped_scores_where_none_that_weighs_failed(items: list[Item]) -> None:
    """Weights 1 and 0.5; `second` is better when lower, so it counts negative, and at best as -1.5.

    p0: (0.5 - 0.5·2) / 1.5 = -1/3, although `logged`, which weighs nothing, failed; p1: `first` does not apply,
    -0.5·3 / 0.5 = -3; p2: `second` failed; p3: (0.2 - 0.5·1.5) / 1.5 = -0.55 / 1.5.
    """
    found = scored(items, TOTAL)
    assert found.figures == {"first": ["first"], "second": ["second"], "logged": ["logged"], "mix": ["mix"]}
    assert [row.get("mix") for row in found.rows] == pytest.approx([-1 / 3, -3.0, None, -0.55 / 1.5], abs=1e-6)
    assert found.failed == [["logged"], [], ["second", "mix"], []]


def test_gate_closes_the_total_and_fails_it_with_what_it_asks(items: list[Item]) -> None:
    """`first` counts where `logged` is above 0.5: p3's is closed, (0 - 0.75) / 1.5 = -0.5; p0's cannot be told."""
    found = scored(items, {**TOTAL, "gates": {"first": "logged > 0.5"}})
    assert [row.get("mix") for row in found.rows] == pytest.approx([None, -3.0, None, -0.5], abs=1e-6)
    assert found.failed[0] == ["logged", "mix"]


def test_file_that_is_no_image_has_no_total_and_has_not_failed(items: list[Item]) -> None:
    Path(items[1].path).write_text("no picture")
    found = scored(items, TOTAL)
    assert (found.rows[1].get("mix"), found.failed[1]) == (None, [])


def test_total_of_a_shipped_mix_is_what_its_composite_gives(tmp_path: Path) -> None:
    """embedded: (ocr + clip/4 + rules/4) / 1.5, and over 1.25 where the prompt has no checks; ocr_heldout weighs nothing."""
    (tmp_path / "images").mkdir()
    for name, text in (("s1", "K7AX"), ("s2", "ZZZZ")):
        Image.fromarray(render_sign(text, "blue")).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "prompts.jsonl").write_text(
        '{"id": "s1", "text": "a blue sign that says \\"K7AX\\"", "checks": [{"kind": "background", "colour": "blue"}]}\n'
        '{"id": "s2", "text": "a blue sign that says \\"K7AX\\""}\n'
    )
    scores = score_folder(tmp_path / "images", None, ["embedded"], tmp_path / "s.parquet")
    table = scores.table
    assert scores.complete
    whole = table["ocr"] + 0.25 * table["clip"] + 0.25 * table["rules"].fillna(0)
    assert table["embedded"].tolist() == pytest.approx((whole / [1.5, 1.25]).tolist(), abs=1e-6)
    assert scores.summary.rewards["", "embedded"].scored == 2
    assert scores.summary.rewards["", "embedded"].mean == pytest.approx(table["embedded"].mean())


def test_averaged_gives_the_scores_of_the_result_it_belongs_to(items: list[Item]) -> None:
    parts = {name: {"reward": f"graded:{name}", **TOTAL["components"][name]} for name in NAMES}
    composite = build_composite({"components": parts, "on_failure": "drop"})
    result = composite([load_image(Path(item.path)) for item in items], [item.prompt for item in items])
    assert composite.averaged(result.components).tolist() == pytest.approx(result.scores.tolist(), nan_ok=True)


@pytest.mark.parametrize(
    ("names", "totals"), [(["ocr"], []), (["ocr_exact"], []), (["embedded", "contrast"], ["embedded"]), (["paper"], ["paper"])]
)
def test_only_a_mix_in_which_several_weigh_has_a_total(names: list[str], totals: list[str]) -> None:
    assert list(choice_of(names).totals) == totals
