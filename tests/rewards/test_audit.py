"""An audit measures what rewards of known faults are known to do, and says so."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from xomni_rl.prompt_sets.signs import COLOURS, render_sign
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.audit import AuditError, Sample, Scores, Variant, picture_samples, score_variants, sign_samples
from xomni_rl.rewards.audit_findings import Effect, Findings, agreement_of, find, interval, trend_of
from xomni_rl.rewards.audit_verdicts import verdicts
from xomni_rl.rewards.base import FunctionReward, Reward, RewardError, RewardResult, build_reward
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward

Images, Prompts = Sequence[np.ndarray], Sequence[Prompt]
CELLS = [np.s_[:, left : left + 10] for left in (13, 33, 53, 73)]
"""The middle of each letter of a plain sign, which even the widest neighbour does not reach."""


def letters(image: np.ndarray, prompt: Prompt) -> int:
    """How many of the four letters of a plain sign are the wanted ones, by its white pixels; blind to colour."""
    wanted = (render_sign(prompt.texts[0], "black") == 255).all(axis=2)
    shown = (image == 255).all(axis=2)
    return sum(np.array_equal(shown[cell], wanted[cell]) for cell in CELLS)


def reader(images: Images, prompts: Prompts) -> list[float]:
    return [letters(image, prompt) / 4 for image, prompt in zip(images, prompts, strict=True)]


def strict_reader(images: Images, prompts: Prompts) -> list[float]:
    return [float(letters(image, prompt) == 4) for image, prompt in zip(images, prompts, strict=True)]


def lenient_reader(images: Images, prompts: Prompts) -> list[float]:
    """A wrong letter is overlooked."""
    return [min(1.0, letters(image, prompt) / 3) for image, prompt in zip(images, prompts, strict=True)]


def colour(images: Images, prompts: Prompts) -> list[float]:
    """1 − distance of the upper left pixel to the wanted colour."""
    asked = [np.array(COLOURS[str(prompt.checks[0]["colour"])]) for prompt in prompts]
    return [1 - float(np.abs(image[0, 0] - rgb).max()) / 255 for image, rgb in zip(images, asked, strict=True)]


def brightness(images: Images, prompts: Prompts) -> list[float]:
    return [image.mean() / 255 for image in images]


def ink(images: Images, prompts: Prompts) -> list[float]:
    """Share of white pixels: a right picture beats a blank one, whatever it says."""
    return [(image > 250).all(axis=2).mean() for image in images]


def constant(images: Images, prompts: Prompts) -> list[float]:
    return [0.5] * len(images)


def picky(images: Images, prompts: Prompts) -> np.ndarray:
    """Brightness of every second prompt's pictures; does not apply to the others."""
    bright = brightness(images, prompts)
    return np.array([np.nan if int(p.id[-1]) % 2 else score for p, score in zip(prompts, bright, strict=True)])


class FailsOnDark(Reward):
    """Share of white pixels, but the darkest pictures cannot be scored."""

    name, version, range, cost = "fails_on_dark", "1", (0.0, 1.0), "nothing"

    def score(self, images: list[np.ndarray], prompts: Prompts) -> RewardResult:
        dark = {index: "too dark" for index, image in enumerate(images) if image.mean() < 20}
        result = RewardResult(np.array(ink(images, prompts)), [{} for _ in images])
        result.scores[list(dark)] = np.nan
        if dark:
            raise RewardError(self.name, dark, result)
        return result

    def self_check(self) -> tuple[np.ndarray, np.ndarray, Prompt]:
        raise NotImplementedError


def as_part(entry: Any, weight: float = 1.0) -> Component:
    reward = entry if isinstance(entry, Reward) else FunctionReward(entry.__name__, entry, {})
    return Component(reward.name, reward, weight)


def audited(*entries: Any, count: int = 6, **options: Any) -> tuple[Scores, Findings]:
    """Scores and findings over signs, the first entry having a weight."""
    parts = [as_part(entry, 1.0 if index == 0 else 0.0) for index, entry in enumerate(entries)]
    scores = score_variants(CompositeReward(parts), sign_samples(count), **options)
    return scores, find(scores)


def effect(findings: Findings, *key: Any) -> Effect:
    found = findings.effect(*key)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def faulty() -> tuple[Scores, Findings]:
    """One audit of all rewards that every test of one of them looks at."""
    return audited(reader, strict_reader, lenient_reader, colour, brightness, ink, constant, FailsOnDark(), count=8)


def test_reader_loses_a_quarter_of_the_span_per_wrong_letter(faulty: tuple[Scores, Findings]) -> None:
    _, findings = faulty
    assert findings.spans["reader"].value == 1.0
    for grade in range(1, 5):
        share = effect(findings, "reader", "wrong_text", grade).share
        assert (share.value, share.low, share.high) == pytest.approx((-grade / 4,) * 3, abs=1e-6)
    assert effect(findings, "reader", "wrong_colour").share.value == 0.0
    assert effect(findings, "reader", "blank").share.value == -1.0


def test_effects_are_differences_of_means_computed_by_hand(faulty: tuple[Scores, Findings]) -> None:
    scores, findings = faulty
    samples = sign_samples(8)
    clean = np.array([(s.subject.image > 250).all(axis=2).mean() for s in samples], dtype=np.float32)
    framed = []
    for sample in samples:
        image = sample.subject.image.copy()
        image[:3] = image[-3:] = image[:, :3] = image[:, -3:] = 255
        framed.append((image > 250).all(axis=2).mean())
    found = effect(findings, "ink", "border")
    assert found.mean == pytest.approx(np.mean(framed), abs=1e-6)
    assert found.change.value == pytest.approx(np.mean(framed - clean), abs=1e-6)
    assert found.share.value == pytest.approx(np.mean(framed - clean) / np.mean(clean), abs=1e-5)  # blank: no ink
    assert scores.values.shape[2] == found.scored == 8


def test_exploit_keeps_and_buys_shares_of_the_span(faulty: tuple[Scores, Findings]) -> None:
    _, findings = faulty
    [border] = [each for each in findings.exploits if (each.reward, each.name) == ("ink", "border")]
    on_right, on_wrong = effect(findings, "ink", "border").share, effect(findings, "ink", "border", 1, "wrong").share
    assert border.kept.value == pytest.approx(1 + on_right.value)
    assert border.kept.value > 1.5
    assert border.bought.value == on_wrong.value
    # The same pictures in another order: what a frame adds to them is the same on average.
    assert on_wrong.value == pytest.approx(on_right.value, abs=1e-5)
    [spam] = [e for e in findings.exploits if (e.reward, e.name, e.strength) == ("reader", "text_spam", "one other word")]
    assert spam.kept.value == pytest.approx(0.0, abs=0.2)  # small type is no letter of the reader's
    assert np.isnan(spam.bought.value)


def test_another_prompts_picture_costs_a_promptless_reward_exactly_nothing(faulty: tuple[Scores, Findings]) -> None:
    _, findings = faulty
    change = effect(findings, "ink", "other_prompt").change
    assert (change.value, change.low, change.high) == (0.0, 0.0, 0.0)
    assert effect(findings, "reader", "other_prompt").share.value < -0.8


def test_lower_is_better_reward_has_the_same_shares_and_the_opposite_scores() -> None:
    def misreading(images: Images, prompts: Prompts) -> np.ndarray:
        return -np.array(reader(images, prompts))

    mirrored = FunctionReward("misreading", misreading, {})
    mirrored.higher_is_better = False
    _, findings = audited(reader, mirrored)
    ours = [e for e in findings.effects if e.reward == "reader"]
    theirs = [e for e in findings.effects if e.reward == "misreading"]
    assert [each.share for each in ours] == [each.share for each in theirs]
    assert [each.mean for each in ours] == pytest.approx([-each.mean for each in theirs])
    assert findings.agreement.rho[0, 1] == pytest.approx(1.0)  # oriented alike


def test_verdicts_of_known_faults(faulty: tuple[Scores, Findings]) -> None:
    said = verdicts(*faulty)
    assert said["constant"] == f"constant: 0.5 for all {faulty[0].made.sum()} pictures"
    assert said["reader"].startswith("reads what is there; blind to colour; spam keeps ")
    assert said["strict_reader"].startswith("reads what is there, all or nothing; blind to colour; spam keeps 0 %")
    assert said["lenient_reader"].startswith("reads what is there, overlooks a wrong letter; blind to colour; ")
    assert re.match(r"blind to text; wrong colour costs \d+ %; spam keeps 100 % of the score", said["colour"]), said["colour"]
    assert re.match(r"blind to the prompt; .* buys \d+ %", said["ink"]), said["ink"]
    # Dark signs with white letters are darker than grey, and contrast makes them whiter.
    assert re.match(
        r"(prefers a blank picture to a right one|does not tell .*); .* raises the score by 0\.\d+", said["brightness"]
    )


@pytest.mark.slow
def test_spam_fools_recall_but_not_precision_of_the_real_reader() -> None:
    readers = {metric: build_reward("ocr", metric=metric, layout="line") for metric in ("edit", "recall", "precision")}
    parts = [Component(metric, reward, 1.0 if metric == "edit" else 0.0) for metric, reward in readers.items()]
    scores = score_variants(CompositeReward(parts), sign_samples(4))
    findings = find(scores)
    said = verdicts(scores, findings)
    kept = {name: int(re.findall(r"spam keeps (\d+) %", line)[0]) for name, line in said.items()}
    # The target and another word: half the words are right (precision), about 5 of 9 characters are extra (edit: 4/9).
    assert kept["recall"] >= 60
    assert kept["precision"] <= 50
    assert kept["edit"] <= 50
    assert all("blind to colour" in line and "reads what is there" in line for line in said.values()), said
    assert "all or nothing" in said["recall"]
    assert "all or nothing" not in said["edit"]


def test_failures_and_what_does_not_apply_are_counted_beside_the_others(faulty: tuple[Scores, Findings]) -> None:
    scores, findings = faulty
    darkest = effect(findings, "fails_on_dark", "brightness", 4)  # a tenth of a dark sign is below 20
    assert darkest.failed > 0
    assert darkest.scored + darkest.failed == 8
    assert darkest.not_applicable == darkest.not_made == 0
    assert effect(findings, "ink", "brightness", 4).scored == 8, "another component's failure costs it nothing"
    assert scores.reasons == {"fails_on_dark": "too dark"}
    _, findings = audited(picky)
    half = effect(findings, "picky", "blur")
    assert (half.scored, half.not_applicable, half.failed) == (3, 3, 0)


def test_reward_that_applies_to_nothing_or_always_fails_says_so() -> None:
    def nothing(images: Images, prompts: Prompts) -> list[float]:
        return [np.nan] * len(images)

    def broken(images: Images, prompts: Prompts) -> list[float]:
        raise OSError("no disk")

    scores, findings = audited(reader, nothing, broken, count=2)
    said, pictures = verdicts(scores, findings), scores.made.sum()
    assert said["nothing"] == f"applies to none of the {pictures} pictures"
    assert re.match(rf"failed on {pictures} of {pictures} pictures, and scored none: .*OSError: no disk", said["broken"])


def test_batches_of_any_size_give_the_same_scores() -> None:
    few, many = (audited(colour, FailsOnDark(), count=3, batch_size=size)[0] for size in (5, 200))
    np.testing.assert_array_equal(few.values, many.values)
    np.testing.assert_array_equal(few.failed, many.failed)


def test_same_seed_gives_the_same_audit_and_another_one_other_noise() -> None:
    one, same, other = (audited(ink, count=3, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.values, same.values)
    assert not np.array_equal(one.values, other.values)


def test_progress_counts_every_picture() -> None:
    counts: list[int] = []
    scores, _ = audited(ink, count=2, advance=counts.append)
    assert sum(counts) == len(scores.variants) * 2


def test_components_with_weights_are_also_audited_as_one() -> None:
    parts = [as_part(reader, 3.0), as_part(ink, 1.0)]
    scores = score_variants(CompositeReward(parts), sign_samples(3))
    assert scores.names == ("reader", "ink", "composite")
    # (3 · reader + 1 · ink) / 4, whatever the picture.
    np.testing.assert_allclose(scores.values[2], 0.75 * scores.values[0] + 0.25 * scores.values[1], atol=1e-6)


def test_own_pictures_undergo_only_what_needs_no_renderer() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20 + i, 30, 3)).astype(np.uint8) for i in range(3)]
    samples = picture_samples(pictures, [Prompt(str(i), f"prompt {i % 2}") for i in range(3)])
    assert samples[0].other == 1
    assert samples[2].other == 1  # the next one, sample 0, has the same prompt
    scores = score_variants(CompositeReward([as_part(ink)]), samples)
    names = {variant.name for variant in scores.variants}
    assert "wrong_text" not in names
    assert {"blur", "blank", "other_prompt", "saturation"} <= names


def test_verdict_on_own_pictures_says_what_another_prompts_picture_costs() -> None:
    signs = sign_samples(6)
    samples = picture_samples([sample.subject.image for sample in signs], [sample.prompt for sample in signs])
    scores = score_variants(CompositeReward([as_part(reader), as_part(ink)]), samples)
    said = verdicts(scores, find(scores))
    # Of four letters, another sign has 0.1 in its place on average; how much ink there is fits every prompt.
    assert re.match(r"another prompt's picture costs (8\d|9\d|100) %", said["reader"]), said
    assert said["ink"].startswith("blind to the prompt")


def test_pictures_of_one_prompt_have_no_other_prompt() -> None:
    samples = picture_samples([np.zeros((9, 9, 3), np.uint8)] * 2, [Prompt("a", "same"), Prompt("b", "same")])
    scores = score_variants(CompositeReward([as_part(brightness)]), samples)
    found = effect(find(scores), "brightness", "other_prompt")
    assert (found.scored, found.not_made) == (0, 2)
    assert np.isnan(found.mean)


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: sign_samples(1), "at least 2 samples, got 1"),
    (lambda: picture_samples([np.zeros((9, 9, 3), np.uint8)], [Prompt("a", "a")]), "got 1 pictures and 1 prompts"),
    (lambda: picture_samples([np.zeros((9, 9, 3), np.uint8)] * 2, [Prompt("a", "a")]), "got 2 pictures and 1 prompts"),
])  # fmt: skip
def test_too_few_samples_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(AuditError, match=sentence):
        make()


def hand_made(values: list[list[float]], name: str = "blur") -> Scores:
    """Scores of one reward: rows are grades from clean on, columns samples."""
    columns = [Variant("clean", "clean", 0, ""), *(Variant(name, "quality", g, "") for g in range(1, len(values)))]
    array = np.array([values], dtype=float)
    made = np.ones(array.shape[1:], dtype=bool)
    others = np.zeros(array.shape[2], dtype=int)
    return Scores(("r",), np.ones(1), tuple(columns), array, made, np.zeros(array.shape, bool), others)


def test_trend_is_kendalls_tau_and_shares_of_samples() -> None:
    falling, flat, mixed, gap = [4, 3, 2, 1], [5, 5, 5, 5], [4, 5, 3, 3], [1, np.nan, 1, 1]
    trend = trend_of(hand_made(np.transpose([falling, flat, mixed, gap]).tolist()), 0, "blur", "quality")
    # τ-b: −1 for the falling one, 0 for the flat one by definition; the mixed one from scipy on the bare numbers.
    expected = (-1 + 0 + kendalltau([0, 1, 2, 3], mixed).statistic) / 3
    assert trend.tau == pytest.approx(expected)
    assert (trend.monotone, trend.flat, trend.scored) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)


def test_monotone_needs_a_fall_and_no_rise() -> None:
    plateau, rise = [4, 4, 2, 2], [4, 4, 2, 3]
    trend = trend_of(hand_made(np.transpose([plateau, rise]).tolist()), 0, "blur", "quality")
    assert (trend.monotone, trend.flat) == (0.5, 0.0)


def test_agreement_is_spearmans_rho_over_pictures_that_both_scored() -> None:
    scores = hand_made([[1.0, 2.0, 3.0], [4.0, 5.0, np.nan]])
    other = np.array([[10.0, 40.0, 20.0], [30.0, 50.0, 60.0]])
    two = replace(
        scores, names=("a", "b"), signs=np.array([1.0, -1.0]), values=np.stack([scores.values[0], other]),
        failed=np.zeros((2, 2, 3), bool),
    )  # fmt: skip
    found = agreement_of(two)
    # Five pictures, with ranks 1 2 3 4 5 and, of 10 40 20 30 50, 1 4 2 3 5. Σd² = 0 + 4 + 1 + 1 + 0 = 6;
    # ρ = 1 − 6·6 / (5·24) = 0.7; lower is better in b.
    assert found.rho[0, 1] == pytest.approx(-0.7)
    assert found.pictures.tolist() == [[5, 5], [5, 6]]


def test_interval_of_two_samples_is_exact() -> None:
    # Resamples of (0, 1) have the mean 0 with probability 1/4, 1/2 with 1/2, and 1 with 1/4: the 2.5 % points are 0 and 1.
    found = interval(lambda x, axis: np.mean(x, axis=axis), (np.array([0.0, 1.0]),), seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_interval_needs_two_samples_and_without_any_nothing_is_known() -> None:
    one = interval(lambda x, axis: np.mean(x, axis=axis), (np.array([3.0]),), seed=0)
    assert one.value == 3.0
    assert np.isnan([one.low, one.high]).all()
    assert not interval(lambda x, axis: np.mean(x, axis=axis), (np.array([]),), seed=0).known


def test_samples_are_heldout_signs_with_another_prompts_picture() -> None:
    samples: list[Sample] = sign_samples(5, seed=3)
    for sample in samples:
        assert sample.subject.sign is not None
        np.testing.assert_array_equal(sample.subject.image, render_sign(*sample.subject.sign))
        assert sample.other is not None
        assert samples[sample.other].prompt.text != sample.prompt.text
        assert sample.subject.other is samples[sample.other].subject.image
        assert len(sample.subject.decoys) == 2
