"""What an audit's scores mean: effects with intervals, trends, what exploits keep and buy, agreement, and a verdict.

All effects are oriented: a positive change is a better score, whichever way the reward points. A *share* is a change in
units of the span (right picture minus blank one); it is undefined (NaN) where the span's interval does not lie above 0.

Each variant is compared with the picture it was made from: the right one, or another prompt's for exploits on wrong pictures.
Another prompt's picture itself is compared with the same picture under its own prompt, so that only the prompt differs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, kendalltau, spearmanr

from xomni_rl.rewards.audit import CLEAN, RIGHT, WRONG, Scores, Variant
from xomni_rl.rewards.perturbations import EXPLOIT

CONFIDENCE = 0.95
RESAMPLES = 1000
SAME = 1e-6
"""Scores closer than this, times the larger of 1 and the score, are the same."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its bootstrap interval; NaN where there is none."""

    value: float
    low: float
    high: float

    def plus(self, shift: float) -> "Interval":
        return Interval(self.value + shift, self.low + shift, self.high + shift)

    @property
    def known(self) -> bool:
        return bool(np.isfinite(self.value))


UNKNOWN = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Effect:
    """What one variant does to one reward; N = scored + not_made + not_applicable + failed.

    Args:
        mean: raw score of the variant.
        change: of the oriented score against the picture that was perturbed, in the reward's units.
        share: the same in units of the span.
        scored: pairs behind these figures.
        not_made: samples that this cannot be done to.
        not_applicable: pairs that the reward does not apply to.
        failed: pairs that the reward failed on.
    """

    reward: str
    variant: Variant
    mean: float
    change: Interval
    share: Interval
    scored: int
    not_made: int
    not_applicable: int
    failed: int


@dataclass(frozen=True)
class Trend:
    """How a reward follows the grades of one perturbation, sample by sample, grade 0 = clean.

    Args:
        tau: mean Kendall's τ-b of grade and oriented score; −1 = always worse; a sample without change counts 0.
        monotone: share of samples whose score never rises with the grade, and falls at least once.
        flat: share of samples whose score does not change at all.
        scored: samples with a score at every grade.
    """

    reward: str
    name: str
    kind: str
    tau: float
    monotone: float
    flat: float
    scored: int


@dataclass(frozen=True)
class Exploit:
    """What an exploit is worth.

    Args:
        kept: share of the span that the right picture scores after it; 1 = as before, more = it pays.
        bought: share of the span that it adds to another prompt's picture; unknown if it draws its own picture.
        scored: pairs behind `kept`.
    """

    reward: str
    name: str
    strength: str
    kept: Interval
    bought: Interval
    scored: int


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation between rewards over all pictures that both scored.

    Args:
        names: the K rewards.
        rho: float [K, K]; NaN where one is constant.
        pictures: int [K, K], how many.
    """

    names: tuple[str, ...]
    rho: np.ndarray
    pictures: np.ndarray


@dataclass(frozen=True)
class Findings:
    """Everything that an audit found.

    Args:
        spans: reward → right minus blank, oriented, in the reward's units.
    """

    samples: int
    spans: dict[str, Interval]
    effects: list[Effect]
    trends: list[Trend]
    exploits: list[Exploit]
    agreement: Agreement

    def effect(self, reward: str, name: str, grade: int = 1, base: str = RIGHT) -> Effect | None:
        """One effect; None if it was not audited."""
        for each in self.effects:
            if (each.reward, each.variant.name, each.variant.grade, each.variant.base) == (reward, name, grade, base):
                return each
        return None

    def grades(self, reward: str, name: str, base: str = RIGHT) -> list[Effect]:
        """The effects of one perturbation, weakest first."""
        chosen = [e for e in self.effects if (e.reward, e.variant.name, e.variant.base) == (reward, name, base)]
        return sorted(chosen, key=lambda each: each.variant.grade)


def find(scores: Scores, seed: int = 0) -> Findings:
    """All findings of an audit's scores.

    Args:
        scores: of `score_variants`.
        seed: of the bootstrap (percentile method over samples, 95 %).
    """
    spans = {name: span_of(scores, k, seed) for k, name in enumerate(scores.names)}
    effects = [
        effect_of(scores, k, column, spans[name], seed)
        for k, name in enumerate(scores.names)
        for column in range(len(scores.variants))
    ]
    graded = {v.name: v.kind for v in scores.variants if v.grade >= 2 and v.base == RIGHT}
    return Findings(
        samples=scores.values.shape[2],
        spans=spans,
        effects=effects,
        trends=[trend_of(scores, k, name, kind) for k in range(len(scores.names)) for name, kind in graded.items()],
        exploits=_exploits(effects),
        agreement=agreement_of(scores),
    )


def span_of(scores: Scores, reward: int, seed: int) -> Interval:
    """Oriented score of the right picture minus that of the blank one."""
    spans = _spans(scores, reward)
    return interval(_mean, (spans[np.isfinite(spans)],), seed)


def effect_of(scores: Scores, reward: int, column: int, span: Interval, seed: int) -> Effect:
    """What one variant does to one reward."""
    variant = scores.variants[column]
    columns, rows = _reference(scores, variant)
    made = scores.made[column] & scores.made[columns, rows] & (rows >= 0)
    failed = made & (scores.failed[reward, column] | scores.failed[reward, columns, rows])
    values = scores.values[reward] * scores.signs[reward]
    change = np.where(made & ~failed, values[column] - values[columns, rows], np.nan)
    paired = np.isfinite(change)
    spans = _spans(scores, reward)
    full = paired & np.isfinite(spans)
    return Effect(
        reward=scores.names[reward],
        variant=variant,
        mean=float(np.mean(scores.values[reward, column, paired])) if paired.any() else np.nan,
        change=interval(_mean, (change[paired],), seed),
        share=interval(_ratio, (change[full], spans[full]), seed) if span.low > 0 else UNKNOWN,
        scored=int(paired.sum()),
        not_made=int((~made).sum()),
        not_applicable=int((made & ~failed & ~paired).sum()),
        failed=int(failed.sum()),
    )


def trend_of(scores: Scores, reward: int, name: str, kind: str) -> Trend:
    """How a reward follows the grades of a perturbation."""
    columns = [c for c, v in enumerate(scores.variants) if v.grade == 0 or (v.name == name and v.base == RIGHT)]
    values = scores.values[reward, columns].T * scores.signs[reward]
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return Trend(scores.names[reward], name, kind, np.nan, np.nan, np.nan, 0)
    steps = np.diff(values, axis=1)
    still = np.abs(steps) <= SAME * np.maximum(1.0, np.abs(values[:, 1:]))
    flat = still.all(axis=1)
    monotone = ((steps < 0) | still).all(axis=1) & ~flat
    grades = np.arange(len(columns))
    taus = [0.0 if same else float(kendalltau(grades, row).statistic) for row, same in zip(values, flat, strict=True)]
    return Trend(
        scores.names[reward], name, kind, float(np.mean(taus)), float(monotone.mean()), float(flat.mean()), len(values)
    )


def agreement_of(scores: Scores) -> Agreement:
    """Rank correlations between the rewards."""
    flat = scores.values.reshape(len(scores.names), -1) * scores.signs[:, None]
    count = len(scores.names)
    rho, pictures = np.full((count, count), np.nan), np.zeros((count, count), dtype=int)
    for i in range(count):
        for j in range(count):
            both = np.isfinite(flat[i]) & np.isfinite(flat[j])
            pictures[i, j] = both.sum()
            if not any(is_constant(flat[k][both]) for k in (i, j)):
                rho[i, j] = spearmanr(flat[i][both], flat[j][both]).statistic
    return Agreement(scores.names, rho, pictures)


def is_constant(values: np.ndarray) -> bool:
    """Whether numbers are all the same, or there are none."""
    return len(values) == 0 or bool(np.ptp(values) <= SAME * max(1.0, float(np.abs(values).max())))


def interval(statistic: Callable[..., np.ndarray], arrays: tuple[np.ndarray, ...], seed: int) -> Interval:
    """A statistic of paired samples with its percentile bootstrap interval; without ends below two samples.

    Args:
        statistic: of arrays along their last axis.
        arrays: float [n] each.
    """
    count = len(arrays[0])
    if count == 0:
        return UNKNOWN
    value = float(statistic(*arrays, axis=-1))
    if count < 2:
        return Interval(value, np.nan, np.nan)
    found = bootstrap(
        arrays,
        statistic,
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def _exploits(effects: list[Effect]) -> list[Exploit]:
    """What exploits keep and buy, from the effects on the right and on another prompt's picture."""
    bought = {(e.reward, e.variant.name, e.variant.grade): e.share for e in effects if e.variant.base == WRONG}
    return [
        Exploit(
            each.reward,
            each.variant.name,
            each.variant.strength,
            each.share.plus(1.0),
            bought.get((each.reward, each.variant.name, each.variant.grade), UNKNOWN),
            each.scored,
        )
        for each in effects
        if each.variant.kind == EXPLOIT and each.variant.base == RIGHT
    ]


def _spans(scores: Scores, reward: int) -> np.ndarray:
    """float64 [N]: oriented score of the right picture minus that of the blank one; NaN without both."""
    clean, blank = scores.index(CLEAN, 0), scores.index("blank")
    if clean is None or blank is None:
        raise ValueError("an audit needs the clean and the blank picture")
    return np.asarray((scores.values[reward, clean] - scores.values[reward, blank]) * scores.signs[reward])


def _reference(scores: Scores, variant: Variant) -> tuple[np.ndarray, np.ndarray]:
    """(columns, rows), int [N] each: what each sample of a variant is compared with; row -1 = there is nothing."""
    rows = np.arange(scores.values.shape[2])
    column = scores.index(CLEAN, 0) if variant.base == RIGHT else scores.index("other_prompt")
    if column is None:
        rows, column = np.full_like(rows, -1), 0
    return np.full_like(rows, column), scores.others if variant.name == "other_prompt" else rows


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    return np.mean(values, axis=axis)


def _ratio(changes: np.ndarray, spans: np.ndarray, axis: int) -> np.ndarray:
    """Ratio of means, which stays finite where a single sample has no span."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.mean(changes, axis=axis) / np.mean(spans, axis=axis))
