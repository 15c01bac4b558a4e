"""How a reward can be fooled, measured: pictures that are right, worse, wrong or bought, scored by every component.

Three levels make a reward's scale: the *right* picture, the same picture *blank*, and the difference between them, the span. A
perturbation's share is what it changes, in units of the span; so rewards of any unit compare. Statistics and verdicts are in
`audit_findings.py`.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from xomni_rl.prompt_sets.signs import random_strings, render_sign, signs
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.rewards.perturbations import Perturbation, Subject, perturbations

RIGHT, WRONG = "right", "wrong"
CLEAN = "clean"
COMPOSITE = "composite"
"""Name of the weighted average, beside the components."""


class AuditError(ValueError):
    """Images and prompts that cannot be audited; the message says why."""


@dataclass(frozen=True)
class Sample:
    """A prompt and the picture to perturb.

    Args:
        other: index of the sample whose picture is `subject.other`; None = all prompts are the same.
    """

    subject: Subject
    prompt: Prompt
    other: int | None


@dataclass(frozen=True)
class Variant:
    """One column of pictures: what was done, how much, and to which picture.

    Args:
        name: of the perturbation; "clean" for none.
        kind: quality, content, exploit, or "clean".
        grade: 0 for clean, then 1, 2, …
        strength: what the grade means, with units.
        base: "right" = the right picture was perturbed; "wrong" = another prompt's was.
    """

    name: str
    kind: str
    grade: int
    strength: str
    base: str = RIGHT


@dataclass(frozen=True)
class Scores:
    """Scores of V variants of N samples under K rewards.

    Args:
        names: the K rewards: the components, then "composite" if more than one has a weight.
        signs: float [K], 1, or -1 where lower is better.
        variants: the V columns; the first is clean.
        values: float64 [K, V, N], raw; NaN = no score.
        made: bool [V, N], whether the picture could be made.
        failed: bool [K, V, N], whether the reward failed on it.
        others: int [N], the sample whose picture stands in as another prompt's; -1 = none.
        reasons: reward → why it failed first.
    """

    names: tuple[str, ...]
    signs: np.ndarray
    variants: tuple[Variant, ...]
    values: np.ndarray
    made: np.ndarray
    failed: np.ndarray
    others: np.ndarray
    reasons: dict[str, str] = field(default_factory=dict)

    def index(self, name: str, grade: int = 1, base: str = RIGHT) -> int | None:
        """The column of a variant; None if it was not audited."""
        for column, variant in enumerate(self.variants):
            if (variant.name, variant.grade, variant.base) == (name, grade, base):
                return column
        return None


def sign_samples(count: int, seed: int = 0) -> list[Sample]:
    """Held-out signs of the embedded domain, with a picture of another prompt and words for spam.

    Raises: AuditError for a count below 2.
    """
    if count < 2:
        raise AuditError(f"an audit needs at least 2 samples, got {count}")
    prompts = signs(split="heldout", count=count, seed=seed)
    words = [(prompt.texts[0], str(prompt.checks[0]["colour"])) for prompt in prompts]
    pictures = [render_sign(text, colour) for text, colour in words]
    decoys = random_strings(np.random.default_rng([seed, count]), 2 * count, heldout=True)
    return [
        replace(sample, subject=replace(sample.subject, sign=words[i], decoys=(decoys[2 * i], decoys[2 * i + 1])))
        for i, sample in enumerate(picture_samples(pictures, prompts))
    ]


def picture_samples(pictures: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[Sample]:
    """A user's own pictures (uint8 [H, W, 3]), taken to be right for their prompts.

    Raises: AuditError below 2 pictures, or if the numbers differ.
    """
    if len(pictures) != len(prompts) or len(pictures) < 2:
        raise AuditError(
            f"an audit needs at least 2 pictures and as many prompts, got {len(pictures)} pictures and {len(prompts)} prompts"
        )
    others = [_other(index, prompts) for index in range(len(prompts))]
    return [
        Sample(Subject(picture, None if other is None else pictures[other]), prompt, other)
        for picture, prompt, other in zip(pictures, prompts, others, strict=True)
    ]


def variants_of(catalogue: Sequence[Perturbation]) -> list[Variant]:
    """Every column of an audit: clean, each perturbation in each grade, exploits also on another prompt's picture."""
    columns = [Variant(CLEAN, CLEAN, 0, "")]
    for each in catalogue:
        for base in (RIGHT, WRONG) if each.on_wrong else (RIGHT,):
            columns += [Variant(each.name, each.kind, grade, s, base) for grade, s in enumerate(each.strengths, start=1)]
    return columns


def score_variants(
    reward: CompositeReward,
    samples: Sequence[Sample],
    *,
    batch_size: int = 32,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> Scores:
    """Scores every perturbed picture of every sample.

    Args:
        reward: its components are scored, and their weighted average.
        samples: at least 2; perturbations that draw are used if all of them are signs.
        batch_size: pictures per call.
        seed: of what is random in the perturbations.
        advance: called with the number of pictures that were dealt with.
    Raises: RewardUnavailableError if a component cannot work at all.
    """
    catalogue = perturbations(renderer=all(sample.subject.sign is not None for sample in samples))
    columns = variants_of(catalogue)
    scores = _empty(reward, columns, samples)
    dropping = replace(reward, on_failure="drop")
    batch: list[tuple[int, int, np.ndarray]] = []
    for column, row, picture in _pictures(catalogue, columns, samples, seed):
        advance(1)
        if picture is not None:
            scores.made[column, row] = True
            batch.append((column, row, picture))
        if len(batch) == batch_size:
            _score(dropping, samples, batch, scores)
            batch = []
    if batch:
        _score(dropping, samples, batch, scores)
    return scores


def _empty(reward: CompositeReward, columns: Sequence[Variant], samples: Sequence[Sample]) -> Scores:
    """Scores without a number in them; the composite has a place of its own if it is more than one component."""
    names, orientations = list(reward.names), [part.sign for part in reward.parts]
    if np.count_nonzero(reward.weights) > 1:
        names.append(COMPOSITE if COMPOSITE not in names else f"{COMPOSITE} of all")
        orientations.append(1.0)
    shape = (len(names), len(columns), len(samples))
    return Scores(
        names=tuple(names),
        signs=np.array(orientations),
        variants=tuple(columns),
        values=np.full(shape, np.nan),
        made=np.zeros(shape[1:], dtype=bool),
        failed=np.zeros(shape, dtype=bool),
        others=np.array([-1 if sample.other is None else sample.other for sample in samples]),
    )


def _pictures(
    catalogue: Sequence[Perturbation], columns: Sequence[Variant], samples: Sequence[Sample], seed: int
) -> Iterator[tuple[int, int, np.ndarray | None]]:
    """(column, row, picture or None), sample by sample."""
    by_name = {each.name: each for each in catalogue}
    for row, sample in enumerate(samples):
        wrong = None if sample.subject.other is None else replace(sample.subject, image=sample.subject.other)
        for column, variant in enumerate(columns):
            subject = sample.subject if variant.base == RIGHT else wrong
            if variant.grade == 0 or subject is None:
                yield column, row, None if subject is None else subject.image
                continue
            # One stream per sample and perturbation: grades nest, and nothing depends on what else is audited.
            rng = np.random.default_rng([seed, row, zlib.crc32(variant.name.encode())])
            yield column, row, by_name[variant.name](subject, variant.grade, rng)


def _score(
    reward: CompositeReward, samples: Sequence[Sample], batch: Sequence[tuple[int, int, np.ndarray]], scores: Scores
) -> None:
    """Scores one batch into `scores`. A failure of one component costs the others nothing."""
    pictures, prompts = [picture for _, _, picture in batch], [samples[row].prompt for _, row, _ in batch]
    columns, rows = np.array([column for column, _, _ in batch]), np.array([row for _, row, _ in batch])
    result = reward(pictures, prompts, group=np.zeros(len(batch), dtype=np.int64))
    found = result.components.T.astype(np.float64)
    failed = np.zeros(found.shape, dtype=bool)
    again = np.flatnonzero(result.failed)
    for k, part in enumerate(reward.parts if len(again) else ()):
        alone, failures = part.scored_where_possible([pictures[i] for i in again], [prompts[i] for i in again])
        found[k, again] = alone.scores
        failed[k, again[list(failures)]] = True
        if failures:
            scores.reasons.setdefault(part.name, next(iter(failures.values())))
    if len(scores.names) > len(reward.parts):
        found = np.vstack([found, result.scores])
        failed = np.vstack([failed, result.failed])
    scores.values[:, columns, rows] = found
    scores.failed[:, columns, rows] = failed


def _other(index: int, prompts: Sequence[Prompt]) -> int | None:
    """The next sample whose prompt reads differently; None if all prompts are the same."""
    following = [(index + step) % len(prompts) for step in range(1, len(prompts))]
    return next((each for each in following if prompts[each].text != prompts[index].text), None)
