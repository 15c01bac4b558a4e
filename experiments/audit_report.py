"""`xomni-rl audit`: audits a reward on signs or on a folder of pictures; writes tables and a figure, prints a summary.

Everything is written beside and renamed, so that a folder never holds half of an audit.
"""

import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from xomni_rl.experiments.audit_plots import draw
from xomni_rl.experiments.own_files import foreign_file
from xomni_rl.experiments.scoring import match_folder
from xomni_rl.images import load_image
from xomni_rl.rewards.audit import WRONG, AuditError, Sample, Scores, picture_samples, score_variants, variants_of
from xomni_rl.rewards.audit_findings import CONFIDENCE, RESAMPLES, Effect, Findings, Interval, Trend, find
from xomni_rl.rewards.audit_verdicts import ALL, FRAGILE, LITTLE, MOST, verdicts
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.rewards.health import hashes_of
from xomni_rl.rewards.perturbations import KINDS, perturbations

FILES = ("audit.json", "audit.csv", "audit.png")
"""The first is renamed first: it says whose the others are."""
PACKAGES = ("numpy", "pillow", "scipy", "xomni-rl")


@dataclass(frozen=True)
class Audit:
    """A finished audit.

    Args:
        out: the folder of its files.
        scores, findings: what was measured.
        verdicts: reward → its line.
    """

    out: Path
    scores: Scores
    findings: Findings
    verdicts: dict[str, str]


def audit_reward(
    reward: CompositeReward,
    out: str | Path,
    *,
    samples: Sequence[Sample],
    config: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    console: Console | None = None,
) -> Audit:
    """Audits a reward's components, and writes audit.csv, audit.json and audit.png.

    Args:
        reward: its components are audited, and their weighted average if several have a weight.
        out: folder of the files; made if need be.
        samples: of `sign_samples` or `folder_samples`.
        config: of the reward, for the record.
        batch_size: pictures per call.
        seed: of random perturbations and the bootstrap.
        console: where the bar and the tables go; None = nowhere.
    Raises: AuditError if the folder cannot be written to or holds others' files, or the batch size is below 1;
        RewardUnavailableError if a component cannot work at all.
    """
    if batch_size < 1:
        raise AuditError(f"batch_size must be at least 1, got {batch_size}")
    folder = _checked_folder(Path(out))
    for part in reward.parts:
        part.reward.load()  # what is missing is said before the bar is drawn
    drawable = all(sample.subject.sign is not None for sample in samples)
    columns = len(variants_of(perturbations(renderer=drawable)))
    with _bar(console, columns * len(samples)) as advance:
        scores = score_variants(reward, samples, batch_size=batch_size, seed=seed, advance=advance)
    findings = find(scores, seed)
    audit = Audit(folder, scores, findings, verdicts(scores, findings))
    write(audit, record(audit, reward, config or {}, seed, drawable))
    if console is not None:
        print_audit(audit, console)
    return audit


def folder_samples(images: str | Path, prompts: str | Path, count: int | None = None) -> list[Sample]:
    """The pictures of a folder with their prompts, matched as `xomni-rl score` does; at most `count`, evenly spread.

    Raises: ScoringError if pictures and prompts do not match; PromptError for bad prompts; ImageFileError naming a file that
        is no picture; AuditError below two pictures.
    """
    items = match_folder(images, prompts).items
    if count is not None and count < len(items):
        items = [items[int(index)] for index in np.linspace(0, len(items) - 1, max(count, 1)).round()]
    return picture_samples([load_image(item.path) for item in items], [item.prompt for item in items])


def effect_table(audit: Audit) -> pd.DataFrame:
    """One row per reward, perturbation, grade and base."""
    return pd.DataFrame([_row(effect) for effect in audit.findings.effects])


def record(audit: Audit, reward: CompositeReward, config: Mapping[str, Any], seed: int, drawable: bool) -> dict[str, Any]:
    """Everything in audit.json: what was audited, with what, and all figures."""
    findings = audit.findings
    return {
        "samples": findings.samples,
        "domain": "held-out signs" if drawable else "pictures of a folder",
        "seed": seed,
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "method": "percentile over samples"},
        "thresholds": {"little": LITTLE, "most": MOST, "all": ALL, "fragile": FRAGILE},
        "packages": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "config": dict(config),
        "rewards": {
            part.name: {"reward": part.reward.name, "version": part.reward.version, "files": hashes_of(part.reward)}
            for part in reward.parts
        },
        "verdicts": audit.verdicts,
        "spans": {name: vars(span) for name, span in findings.spans.items()},
        "effects": effect_table(audit).to_dict("records"),
        "trends": [vars(trend) for trend in findings.trends],
        "exploits": [vars(e) | {"kept": vars(e.kept), "bought": vars(e.bought)} for e in findings.exploits],
        "agreement": {
            "names": findings.agreement.names,
            "spearman": findings.agreement.rho.tolist(),
            "pictures": findings.agreement.pictures.tolist(),
        },
        "failures": audit.scores.reasons,
    }


def write(audit: Audit, content: Mapping[str, Any]) -> None:
    """Writes the three files beside and renames them. Raises: AuditError if that fails."""
    try:
        with tempfile.TemporaryDirectory(dir=audit.out, prefix=".audit.") as beside:
            report, table, figure = (Path(beside) / name for name in FILES)
            effect_table(audit).to_csv(table, index=False)
            text = json.dumps(_without_nan(content), indent=1, ensure_ascii=False, allow_nan=False)
            report.write_text(text + "\n", encoding="utf-8")
            draw(audit.findings, figure)
            for path in (report, table, figure):
                os.replace(path, audit.out / path.name)
    except OSError as error:
        raise AuditError(f"{audit.out}: the audit cannot be written there: {error.strerror or error}") from error


def print_audit(audit: Audit, console: Console) -> None:
    """Prints a table per reward, their agreement, failures, and the verdicts."""
    for name in audit.scores.names:
        console.print(_reward_table(audit.findings, name))
    if len(audit.scores.names) > 1:
        console.print(_agreement_table(audit.findings))
    for name, reason in audit.scores.reasons.items():
        failed = int(audit.scores.failed[audit.scores.names.index(name)].sum())
        console.print(Text(f"{name} failed on {failed} pictures, first: {reason}", "red"))
    for name, line in audit.verdicts.items():
        console.print(Text.assemble((f"{name}: ", "bold"), line), soft_wrap=True)
    console.print(Text(f"written: {', '.join(str(audit.out / name) for name in FILES)}"), soft_wrap=True)


def _reward_table(findings: Findings, reward: str) -> Table:
    """What is left of the score at each grade, how it follows the grades, and what exploits buy on a wrong picture."""
    span = findings.spans[reward]
    title = f"{reward}: right {_mean(findings, reward, 'clean', 0)}, blank {_mean(findings, reward, 'blank')}"
    title += f", span {_figure(span.value)} [{_figure(span.low)}, {_figure(span.high)}]; "
    title += "score left, % of span" if span.low > 0 else "mean score (no span: no shares)"
    table = Table("perturbation", title=title, title_justify="left")
    for column in (
        "grade 1",
        "grade 2",
        "grade 3",
        "grade 4",
        "added to a wrong picture",
        "τ",
        "monotone",
        "N",
        "n/a",
        "failed",
    ):
        table.add_column(column, justify="right")
    trends = {trend.name: trend for trend in findings.trends if trend.reward == reward}
    kinds = {e.variant.name: e.variant.kind for e in findings.effects if e.reward == reward and e.variant.grade > 0}
    for kind in KINDS:
        for name in (name for name, its_kind in kinds.items() if its_kind == kind):
            grades, wrong = findings.grades(reward, name), findings.grades(reward, name, WRONG)
            cells = [_cell(effect) for effect in grades] + [""] * (4 - len(grades))
            bought = _share(wrong[0].share) if wrong else ""
            table.add_row(name, *cells, bought, *_following(trends.get(name)), *_counts([*grades, *wrong]))
        table.add_section()
    return table


def _following(trend: Trend | None) -> list[str]:
    if trend is None or trend.scored == 0:
        return ["", ""]
    return [f"{round(trend.tau, 2) + 0.0:.2f}", f"{100 * trend.monotone:.0f} %"]


def _agreement_table(findings: Findings) -> Table:
    found = findings.agreement
    table = Table("", *found.names, title="Spearman's ρ over all pictures (number of them)", title_justify="left")
    for name, rhos, pictures in zip(found.names, found.rho, found.pictures, strict=True):
        cells = [f"{rho:.2f} ({n})" if np.isfinite(rho) else f"– ({n})" for rho, n in zip(rhos, pictures, strict=True)]
        table.add_row(name, *cells)
    return table


def _counts(grades: Sequence[Effect]) -> list[str]:
    """Fewest pairs, most that do not apply or cannot be made, most failures, over the grades."""
    return [
        str(min(effect.scored for effect in grades)),
        str(max(effect.not_applicable + effect.not_made for effect in grades)),
        str(max(effect.failed for effect in grades)),
    ]


def _cell(effect: Effect) -> str:
    """Share of the span left, or the mean where there is no span."""
    return _share(effect.share.plus(1.0)) if effect.share.known else _figure(effect.mean)


def _share(found: Interval) -> str:
    if not found.known:
        return "–"
    if not np.isfinite(found.low):
        return f"{100 * found.value:.0f} %"
    return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _mean(findings: Findings, reward: str, name: str, grade: int = 1) -> str:
    effect = findings.effect(reward, name, grade)
    return "–" if effect is None else _figure(effect.mean)


def _figure(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "–"


def _row(effect: Effect) -> dict[str, Any]:
    variant = effect.variant
    return {
        "reward": effect.reward,
        "perturbation": variant.name,
        "kind": variant.kind,
        "grade": variant.grade,
        "strength": variant.strength,
        "picture": variant.base,
        "mean": effect.mean,
        "change": effect.change.value,
        "change_low": effect.change.low,
        "change_high": effect.change.high,
        "share": effect.share.value,
        "share_low": effect.share.low,
        "share_high": effect.share.high,
        "scored": effect.scored,
        "not_made": effect.not_made,
        "not_applicable": effect.not_applicable,
        "failed": effect.failed,
    }


def _without_nan(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _checked_folder(out: Path) -> Path:
    """Finds out before the work, not after it, that nothing could be written, or somebody else's files would be replaced."""
    if foreign := foreign_file(out, FILES, FILES[0]):
        raise AuditError(
            f"{foreign} would be replaced and is of no audit ({out} has no {FILES[0]}): choose another folder, or move it away"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".audit."):
            pass
    except OSError as error:
        raise AuditError(f"{out}: the audit cannot be written there: {error.strerror or error}") from error
    return out


@contextmanager
def _bar(console: Console | None, total: int) -> Iterator[Callable[[int], None]]:
    """A function that moves the bar on by so many pictures."""
    if console is None:
        yield lambda count: None
        return
    columns = (TextColumn("auditing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("auditing", total=total)
        yield lambda count: progress.advance(task, count)
