"""A comparison as a table: CSV, Markdown and LaTeX (`terminal` prints it). The figures are the same in all of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xomni_rl.experiments.ablation import statistics
from xomni_rl.experiments.ablation.comparison import Comparison, Row, TargetRow
from xomni_rl.experiments.ablation.statistics import Estimate
from xomni_rl.experiments.report.provenance import provenance

COLUMNS = ("name", "metric", "mean", "IQM", "low", "high", "seeds")
BEFORE = "before training"
TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
TEX |= {">": r"\textgreater{}", "|": r"\textbar{}", "–": "--"} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def csv_table(comparison: Comparison) -> str:
    """One line per method and figure; low and high are the interval of the IQM.

    For a metric M: `M` after training, `M_before`, `M_gain`, and `M_improvement`, the probability of beating the first method;
    it has no IQM, so that column repeats it, and low and high are its own interval. For a target: `seconds_to_M=SCORE` and
    `samples_to_M=SCORE` over the seeds that reached it, whose number is the line's `seeds`; nan where none did.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in comparison.rows:
        figures = [("", row.after.value, row.iqm), ("_before", row.before.value, row.iqm_before)]
        figures.append(("_gain", row.gain.value, row.iqm_gain))
        if row.improvement is not None:
            figures.append(("_improvement", row.improvement.value, row.improvement))
        for suffix, mean, iqm in figures:
            numbers = [f"{number:.6f}" for number in (mean, iqm.value, iqm.low, iqm.high)]
            writer.writerow([row.name, row.metric + suffix, *numbers, row.seeds])
    for target in comparison.targets:
        for what, values in (("seconds", target.seconds), ("samples", target.samples)):
            numbers = [f"{number:.2f}" for number in cost(values)]
            writer.writerow([target.name, f"{what}_to_{target_name(target)}", *numbers, target.reached])
    return buffer.getvalue()


def cost(values: Sequence[float]) -> tuple[float, float, float, float]:
    """(mean, IQM, low, high) over the seeds that reached a target; NaN if none did."""
    reached = np.array([value for value in values if math.isfinite(value)])
    if not reached.size:
        return (math.nan,) * 4
    iqm = statistics.interquartile_mean(reached[:, None])
    return float(reached.mean()), iqm.value, iqm.low, iqm.high


def target_name(row: TargetRow) -> str:
    """ "ocr_exact=0.7"."""
    return f"{row.target.metric}={row.target.score:.3g}"


def markdown(comparison: Comparison) -> str:
    """The tables with everything said under them: notes, fairness, differing settings, runs."""
    width = 7 + comparison.compared
    head = ["metric", "method", "seeds", "before", "mean", "IQM", "gain", f"P(better than {comparison.first})"][:width]
    rows = [
        [comparison.title(metric), row.name, str(row.seeds), *cells(row)][:width]
        for metric in comparison.shown
        for row in comparison.rows_of(metric)
    ]
    parts = [_markdown_grid(head, rows)]
    if comparison.targets:
        head = ["target", "method", "reached", "seconds of training", "images"]
        parts.append(_markdown_grid(head, [[target_name(r), r.name, *target_cells(r)] for r in comparison.targets]))
        parts.append(f"{cost_note(comparison)}\n")
    parts.append("\n".join(f"- {note}." for note in notes(comparison)) + "\n")
    fairness = comparison.fairness
    if fairness.equal:
        parts.append(f"**The same in all runs:** {'; '.join(fairness.equal)}.\n")
    parts += [f"**Unfair:** {warning}.\n" for warning in fairness.warnings]
    if fairness.differing:
        names = list(comparison.methods)
        rows = [[f"`{key}`", *(_setting(values, n) for n in names)] for key, values in fairness.differing.items()]
        parts.append("Settings that differ:\n\n" + _markdown_grid(["setting", *names], rows))
    folders = {name: [run.folder for run in runs] for name, runs in comparison.methods.items()}
    parts.append("Runs:\n\n" + "\n".join(provenance(folders)) + "\n")
    return "\n".join(parts)


def latex(comparison: Comparison) -> str:
    """Tables for a paper; they need the package booktabs. The best mean of a metric is bold."""
    head = ["method", "seeds", "mean", "IQM", "gain", f"$P$(better than {tex(comparison.first)})"][: 5 + comparison.compared]
    columns = "lr" + "l" * (len(head) - 2)
    lines = ["% \\usepackage{booktabs}", "\\begin{table}", "\\centering", f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines.append(_tex_row(head))
    for metric in comparison.shown:
        found = comparison.rows_of(metric)
        lines += ["\\midrule", f"\\multicolumn{{{len(head)}}}{{l}}{{\\textit{{{tex(comparison.title(metric))}}}}} \\\\"]
        before = [_tex_estimate(found[0].before), _tex_estimate(found[0].iqm_before)]
        lines.append(_tex_row([BEFORE, "", *before, "", ""][: len(head)]))
        lines += [_tex_row(_tex_cells(row, comparison.compared)) for row in found]
    said = " ".join(f"{tex(note)}." for note in notes(comparison))
    lines += ["\\bottomrule", "\\end{tabular}", f"\\caption{{Held-out scores after training. {said}}}", "\\end{table}"]
    if comparison.targets:
        lines += ["", *_latex_targets(comparison)]
    return "\n".join(lines) + "\n"


def notes(comparison: Comparison) -> list[str]:
    """What a reader needs to read the table, one sentence each, without the full stop."""
    rows = comparison.rows
    images = sorted({row.prompts for row in rows})
    seeds = sorted({row.seeds for row in rows})
    over = f"{_span(seeds)} seed{'s' * (seeds != [1])} and {_span(images)} held-out images"
    said = [f"Brackets: 95 % bootstrap intervals over {over}; gains are paired by prompt"]
    if comparison.yes_or_no:
        names = ", ".join(comparison.yes_or_no)
        said.append(f"The IQM of a yes-or-no metric ({names}) is 0 below a mean of 0.25 and 1 above 0.75: read the mean")
    if comparison.saturated:
        said.append(f"The IQM of {', '.join(comparison.saturated)} stands at the end of its scale: read the mean")
    if comparison.lower_is_better:
        said.append(f"Less is better: {', '.join(sorted(comparison.lower_is_better))}")
    return [*said, *comparison.notes]


def cost_note(comparison: Comparison) -> str:
    """What the targets' costs are, in sentences."""
    said = (
        "Cost of a held-out score: mean (lowest–highest) over the seeds that reached it, on straight lines between evaluations"
    )
    return " ".join(f"{note}." for note in [said, *comparison.cost_notes])


def shown(estimate: Estimate, *, signed: bool = False) -> str:
    """ "0.799 [0.757, 0.840]"."""
    form = "+.3f" if signed else ".3f"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(TEX.get(letter, letter) for letter in text)


def cells(row: Row) -> list[str]:
    """before, mean, IQM, gain, improvement."""
    improvement = "–" if row.improvement is None else shown(row.improvement)
    return [shown(row.before), shown(row.after), shown(row.iqm), shown(row.gain, signed=True), improvement]


def target_cells(row: TargetRow) -> list[str]:
    """reached, seconds, images."""
    cells = [f"{row.reached} of {len(row.samples)}"]
    for values in (row.seconds, row.samples):
        finite = [value for value in values if math.isfinite(value)]
        spread = f" ({min(finite):,.0f}–{max(finite):,.0f})" if len(finite) > 1 else ""
        cells.append(f"{np.mean(finite):,.0f}{spread}" if finite else "not reached")
    return cells


def _latex_targets(comparison: Comparison) -> list[str]:
    rows = [_tex_row(map(tex, [row.name, target_name(row), *target_cells(row)])) for row in comparison.targets]
    head = _tex_row(["method", "target", "reached", "seconds of training", "images"])
    lines = ["\\begin{table}", "\\centering", "\\begin{tabular}{llrrr}", "\\toprule", head, "\\midrule", *rows]
    return [*lines, "\\bottomrule", "\\end{tabular}", f"\\caption{{{tex(cost_note(comparison))}}}", "\\end{table}"]


def _tex_cells(row: Row, compared: bool) -> list[str]:
    figures = [_tex_estimate(row.after, bold=row.best and compared), _tex_estimate(row.iqm)]
    figures.append(_tex_estimate(row.gain, signed=True))
    improvement = "--" if row.improvement is None else _tex_estimate(row.improvement)
    return [tex(row.name), str(row.seeds), *figures, improvement][: 5 + compared]


def _tex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _tex_estimate(estimate: Estimate, *, bold: bool = False, signed: bool = False) -> str:
    value, _, interval = shown(estimate, signed=signed).partition(" ")
    number = f"\\mathbf{{{value}}}" if bold else value
    return f"${number}$ {{\\scriptsize ${interval}$}}"


def _setting(values: Mapping[str, Any], name: str) -> str:
    return f"`{values[name]}`" if name in values else "–"


def _span(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def _markdown_grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
