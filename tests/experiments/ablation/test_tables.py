"""The same figures in every form of the table, whatever the methods are called."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from xomni_rl.experiments.ablation.comparison import Comparison, Target, compare
from xomni_rl.experiments.ablation.tables import COLUMNS, cost, csv_table, latex, markdown, tex
from xomni_rl.experiments.ablation.terminal import print_comparison

MakeRun = Callable[..., Path]
Groups = dict[str, list[Path]]
SIDES = {0: {"metric_ocr_exact": [0, 1]}, 10: {"metric_ocr_exact": [1, 1]}}


@pytest.fixture
def comparison(two_methods: Groups) -> Comparison:
    return compare(two_methods, targets=[Target("ocr_exact", 0.9)], notes=["a note"], cost_notes=["a cost note"])


def printed(comparison: Comparison, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_comparison(comparison, console)
    return console.file.getvalue()


def test_csv_has_exactly_the_columns_and_a_line_per_method_and_figure(comparison: Comparison) -> None:
    text = csv_table(comparison)
    assert text.splitlines()[0] == "name,metric,mean,IQM,low,high,seeds" == ",".join(COLUMNS)
    lines = {(line["name"], line["metric"]): line for line in csv.DictReader(io.StringIO(text))}
    metrics = ["ocr_exact", "ocr_char", "ocr"]
    figures = [f"{metric}{suffix}" for metric in metrics for suffix in ("", "_before", "_gain")]
    figures += ["seconds_to_ocr_exact=0.9", "samples_to_ocr_exact=0.9"]
    assert {metric for name, metric in lines if name == "grpo"} == set(figures)
    assert {metric for name, metric in lines if name == "gspo"} == {*figures, *(f"{m}_improvement" for m in metrics)}
    row = next(row for row in comparison.rows if (row.name, row.metric) == ("gspo", "ocr_char"))
    line = lines["gspo", "ocr_char"]
    expected = [row.after.value, row.iqm.value, row.iqm.low, row.iqm.high]
    assert [float(line[name]) for name in ("mean", "IQM", "low", "high")] == pytest.approx(expected, abs=1e-6)
    assert line["seeds"] == "2"


def test_csv_interval_holds_the_iqm_in_every_line(comparison: Comparison) -> None:
    for line in csv.DictReader(io.StringIO(csv_table(comparison))):
        low, iqm, high = (float(line[name]) for name in ("low", "IQM", "high"))
        assert low <= iqm <= high or line["seeds"] == "0", line


def test_csv_counts_the_seeds_that_reached_a_target(comparison: Comparison) -> None:
    # gspo's seed 1 rises 0.5 → 1.0 from step 10 to 20, so reaches 0.9 at step 18 = 144 images; nobody else does.
    lines = {(line["name"], line["metric"]): line for line in csv.DictReader(io.StringIO(csv_table(comparison)))}
    reached = lines["gspo", "samples_to_ocr_exact=0.9"]
    assert (float(reached["mean"]), reached["seeds"]) == (144.0, "1")
    never = lines["grpo", "samples_to_ocr_exact=0.9"]
    assert (never["mean"], never["IQM"], never["seeds"]) == ("nan", "nan", "0")


def test_markdown_holds_figures_notes_fairness_settings_and_runs(comparison: Comparison) -> None:
    text = markdown(comparison)
    row = next(row for row in comparison.rows if (row.name, row.metric) == ("gspo", "ocr_exact"))
    assert f"| ocr_exact | gspo | 2 | 0.250 [{row.before.low:.3f}, {row.before.high:.3f}] | 0.875 [" in text
    assert "| ocr_exact=0.9 | grpo | 0 of 2 | not reached | not reached |" in text
    assert "- a note.\n" in text
    assert "a cost note." in text
    assert "**The same in all runs:** initial weights; images generated in training (160)" in text
    assert "| `algorithm.name` | `grpo` | `gspo` |" in text
    assert "- gspo: `gspo/1` (seed 1, 20 steps, finished, commit 0123456789)" in text
    assert "**Unfair:**" not in text


def test_unfair_difference_stands_in_markdown_and_on_the_terminal(make_run: MakeRun) -> None:
    other = {"config": {"trainer.group_size": 8}}
    found = compare({"a": [make_run("a", SIDES)], "b": [make_run("b", SIDES, **other)]})
    words = "images generated in training differ: 80 in a; 160 in b."
    assert f"**Unfair:** {words}\n" in markdown(found)
    assert f"unfair: {words}\n" in printed(found, 200)


def test_every_line_of_a_latex_table_has_as_many_cells_as_columns(comparison: Comparison) -> None:
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", latex(comparison), re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
        assert len(lines) >= 3
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
    text = latex(comparison)
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.count(r"\mathbf") == 2  # gspo's exact match and character accuracy


def test_best_mean_is_bold_and_only_among_several_methods(two_methods: Groups) -> None:
    assert r"gspo & 2 & $\mathbf{0.875}$" in latex(compare(two_methods))
    assert r"\mathbf" not in latex(compare({"grpo": two_methods["grpo"]}))


def test_names_with_special_characters_stay_text_in_every_form(make_run: MakeRun) -> None:
    name = r"a_b|50%&[bold]{x}\$#~^<c>"
    found = compare({"first": [make_run("a", SIDES)], name: [make_run("b", SIDES)]})
    assert r"a\_b\textbar{}50\%\&[bold]\{x\}\textbackslash{}\$\#\textasciitilde{}" in latex(found)
    assert name.replace("|", r"\|") in markdown(found)
    assert name in printed(found, 200)
    assert [row["name"] for row in csv.DictReader(io.StringIO(csv_table(found)))][3] == name


def test_terminal_shows_one_line_per_method_where_it_is_wide_and_two_where_it_is_not(comparison: Comparison) -> None:
    wide, narrow = printed(comparison, 140), printed(comparison, 80)
    assert re.search(r"gspo +0\.875 \[", wide)
    assert re.search(r"gspo +0\.875 +", narrow)
    assert "…" not in narrow
    assert re.search(r"^ +\[0\.\d{3},\d\.\d{3}\]", narrow, re.MULTILINE)
    for text in (wide, narrow):
        assert "ocr_char = ocr" in text
        assert "Settings that differ: algorithm.name." in text


def test_single_method_is_compared_with_nothing(two_methods: Groups) -> None:
    found = compare({"grpo": two_methods["grpo"]})
    for text in (markdown(found), latex(found), printed(found, 140)):
        assert "better than" not in text


def test_iqm_at_the_end_of_its_scale_is_named(make_run: MakeRun) -> None:
    # Nine of ten values are 1: the middle half holds nothing else, whatever is drawn often enough.
    most = {0: {"reward_clip": [0.5] * 20}, 10: {"reward_clip": [0.5, 0.9] + [1.0] * 18}}
    text = markdown(compare({"a": [make_run("a", most)]}))
    assert "The IQM of clip stands at the end of its scale: read the mean." in text
    assert "stands at the end" not in markdown(compare({"b": [make_run("b", SIDES)]}))


def test_cost_is_over_the_seeds_that_reached_the_target() -> None:
    assert cost([2.0, float("inf"), 4.0])[:2] == (3.0, 3.0)


def test_single_seed_is_said_to_say_nothing_about_another(make_run: MakeRun) -> None:
    assert "With one seed an interval covers the choice of prompts only" in markdown(compare({"a": [make_run("a", SIDES)]}))


def test_escaped_text_has_no_bare_special_character() -> None:
    assert tex("10 % of_a–b") == r"10 \% of\_a--b"
