"""The figures of two methods against values derived by hand; runs that cannot be compared are refused in one sentence."""

import math
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from xomni_rl.experiments.ablation.comparison import Target, compare
from xomni_rl.experiments.report.data import ReportError

MakeRun = Callable[..., Path]
Groups = dict[str, list[Path]]
ONE = {0: {"metric_ocr_exact": [0, 1]}, 10: {"metric_ocr_exact": [1, 1]}}


def test_rows_hold_means_gains_and_improvement_derived_by_hand(two_methods: Groups) -> None:
    rows = {(row.name, row.metric): row for row in compare(two_methods).rows}
    grpo, gspo = rows["grpo", "ocr_exact"], rows["gspo", "ocr_exact"]
    assert (grpo.seeds, grpo.prompts) == (2, 4)
    # grpo ends with 2 and 3 of 4, gspo with 3 and 4; 1 of 4 before.
    assert (grpo.before.value, grpo.after.value, grpo.gain.value) == (0.25, 0.625, 0.375)
    assert (gspo.after.value, gspo.gain.value) == (0.875, 0.625)
    # IQM of grpo's 1 1 0 0 1 1 1 0: two left out at each end of 0 0 0 1 1 1 1 1: (0 + 1 + 1 + 1) / 4.
    assert grpo.iqm.value == 0.75
    # Prompts 1 and 2 tie: ½ each. Prompt 3, {1, 1} against {0, 1}: (1 + ½ + 1 + ½) / 4 = ¾. Prompt 4, {0, 1} against {0, 0}:
    # (½ + ½ + 1 + 1) / 4 = ¾. Mean of ½ ½ ¾ ¾ = 5/8.
    assert grpo.improvement is None
    assert gspo.improvement is not None
    assert gspo.improvement.value == 0.625
    assert (grpo.best, gspo.best) == (False, True)


def test_metrics_come_with_the_ocrs_accuracies_first_and_equal_ones_are_shown_once(two_methods: Groups) -> None:
    found = compare(two_methods)
    assert found.metrics == ["ocr_exact", "ocr_char", "ocr"]
    assert found.shown == ["ocr_exact", "ocr_char"]
    assert found.title("ocr_char") == "ocr_char = ocr"
    assert found.yes_or_no == ["ocr_exact"]


def test_default_target_is_ninety_percent_of_the_first_methods_gain(two_methods: Groups) -> None:
    # 0.25 + 0.9 · 0.375 = 0.5875. grpo: seed 0 ends at 0.5, never; seed 1 rises 0.5 → 0.75 from step 10 to 20: step 13.5.
    # gspo: seed 0 the same; seed 1 rises 0.5 → 1.0: step 11.75. A step is 8 images and 2 s.
    grpo, gspo = compare(two_methods).targets
    assert grpo.target.score == pytest.approx(0.5875)
    assert (grpo.reached, gspo.reached) == (1, 2)
    assert grpo.samples == (math.inf, pytest.approx(13.5 * 8))
    assert gspo.samples == pytest.approx((13.5 * 8, 11.75 * 8))
    assert gspo.seconds == pytest.approx((27.0, 23.5))  # the 5 s of every evaluation are not training


def test_images_are_those_a_run_counted_itself(make_run: MakeRun) -> None:
    # Eight images a step are trained on, and four more were generated: 12 · 10 steps · 9/10 of the way to the target.
    found = compare({"a": [make_run("a", ONE, metrics={"images": 12})]})
    assert found.targets[0].samples == pytest.approx((108.0,))
    assert "images generated in training (120)" in found.fairness.equal


def test_target_of_ones_own_replaces_the_default(two_methods: Groups) -> None:
    found = compare(two_methods, targets=[Target("ocr_exact", 0.25), Target("ocr_char", 0.99)]).targets
    assert [(row.name, row.reached) for row in found] == [("grpo", 2), ("gspo", 2), ("grpo", 0), ("gspo", 0)]
    assert found[0].seconds == (0.0, 0.0)  # there before training


def test_first_method_that_gained_nothing_sets_no_target(make_run: MakeRun) -> None:
    flat = {0: {"metric_ocr_exact": [0, 1]}, 10: {"metric_ocr_exact": [1, 0]}}
    found = compare({"a": [make_run("a", flat)]})
    assert found.targets == []
    assert any("gained nothing on ocr_exact" in note for note in found.notes)


def test_component_whose_good_image_scored_lower_is_better_when_lower(make_run: MakeRun) -> None:
    checks = {"size": {"scores": [0.1, 0.9]}}
    falls = {0: {"reward_size": [0.8, 0.8]}, 10: {"reward_size": [0.4, 0.4]}}
    stays = {0: {"reward_size": [0.8, 0.8]}, 10: {"reward_size": [0.7, 0.7]}}
    found = compare({"falls": [make_run("a", falls, checks=checks)], "stays": [make_run("b", stays, checks=checks)]})
    first, second = found.rows
    assert found.lower_is_better == {"size"}
    assert (first.best, second.best) == (True, False)
    assert second.improvement is not None
    assert second.improvement.value == 0.0
    # 90 % of the way from 0.8 to 0.4 is 0.44, reached on the line at 9/10 of 10 steps of 8 images.
    assert found.targets[0].samples == pytest.approx((72.0,))
    assert found.targets[1].reached == 0


def test_runs_are_paired_by_prompt_whatever_the_order_of_their_rows(make_run: MakeRun) -> None:
    a = make_run("a", ONE)
    b = make_run("b", ONE, seed=1)
    table = b / "heldout" / "step_000010.parquet"
    rows = pq.read_table(table)
    pq.write_table(rows.take([1, 0]), table)
    (row,) = compare({"mine": [a, b]}).rows
    assert row.gain.value == 0.5


def test_samples_a_metric_does_not_apply_to_are_left_out_everywhere(make_run: MakeRun) -> None:
    a = make_run("a", {0: {"metric_ocr_exact": [0, 1, math.nan]}, 1: {"metric_ocr_exact": [1, 1, math.nan]}})
    b = make_run("b", {0: {"metric_ocr_exact": [0, 1, 1]}, 1: {"metric_ocr_exact": [1, math.nan, 1]}})
    found = compare({"a": [a], "b": [b]})
    assert [row.prompts for row in found.rows] == [1, 1]
    assert "ocr_exact applies to 1 of 3 held-out images in all runs" in found.notes


def test_runs_with_some_prompts_in_common_are_compared_on_those(make_run: MakeRun) -> None:
    longer = {step: {"metric_ocr_exact": [*columns["metric_ocr_exact"], 1, 1]} for step, columns in ONE.items()}
    found = compare({"a": [make_run("a", ONE)], "b": [make_run("b", longer)]})
    assert {row.prompts for row in found.rows} == {2}
    assert "The runs share 2 of up to 4 held-out images; only those count" in found.notes


def test_runs_stopped_at_different_steps_meet_at_their_mean_last_step(make_run: MakeRun) -> None:
    runs = [make_run(str(last), dict.fromkeys((0, 20, last), ONE[0]), seed=last) for last in (30, 40)]
    found = compare({"mine": runs})
    assert [point.at["step"] for point in found.curves["mine", "ocr_exact"]] == [0.0, 20.0, 35.0]


def test_metrics_of_some_runs_only_are_left_out_and_named(make_run: MakeRun) -> None:
    more = {step: columns | {"reward_clip": [0.5, 0.5]} for step, columns in ONE.items()}
    found = compare({"a": [make_run("a", ONE)], "b": [make_run("b", more)]})
    assert found.metrics == ["ocr_exact"]
    assert "Not in every run, and left out: clip" in found.notes


def test_runs_that_cannot_be_compared_are_refused_in_one_sentence(make_run: MakeRun, tmp_path: Path) -> None:
    one = make_run("one", ONE)
    with pytest.raises(ReportError, match="nothing to compare: give one or more run folders"):
        compare({})
    with pytest.raises(ReportError, match="is no run folder: it has no config"):
        compare({"a": [tmp_path]})
    with pytest.raises(ReportError, match="has 1 held-out evaluations; before and after are needed"):
        compare({"a": [make_run("short", {0: ONE[0]})]})
    with pytest.raises(ReportError, match=r"were evaluated on different prompts \('p sign 0', 'q sign 0', …\)"):
        compare({"a": [one], "b": [make_run("other", ONE, prefix="q")]})
    with pytest.raises(ReportError, match=r"one has no held-out 'clip'; all runs have ocr_exact"):
        compare({"a": [one]}, metrics=["clip"])
    with pytest.raises(ReportError, match=r"no held-out 'clip', which a target was set for"):
        compare({"a": [one]}, targets=[Target("clip", 0.5)])
    clip = {step: {"reward_clip": [0.5, 0.5]} for step in (0, 1)}
    with pytest.raises(ReportError, match="have no metric in common"):
        compare({"a": [one], "b": [make_run("clip", clip)]})
    nothing = {step: {"reward_clip": [math.nan, math.nan]} for step in (0, 1)}
    with pytest.raises(ReportError, match="no metric applies"):
        compare({"a": [make_run("nothing", nothing)]})


def test_table_that_cannot_be_read_is_named(make_run: MakeRun) -> None:
    folder = make_run("one", ONE)
    (folder / "heldout" / "step_000010.parquet").write_text("no table")
    with pytest.raises(ReportError, match=r"step_000010\.parquet could not be read"):
        compare({"a": [folder]})
