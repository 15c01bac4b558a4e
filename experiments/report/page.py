"""Builds report.html: one file with its styles, scripts, figures and pictures inside, readable without a network.

Prompts and what an OCR read are untrusted text. Three things keep them text: Jinja's autoescape, figure JSON with
`<`, `>` and `&` escaped, and a content security policy that runs only the scripts carrying this page's nonce.
"""

import base64
import io
import json
import math
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError
from plotly.offline import get_plotlyjs

from xomni_rl.experiments.report.data import (
    Headline,
    Pair,
    ReportError,
    RunData,
    Sample,
    component_weights,
    read_run,
    short_commit,
)
from xomni_rl.experiments.report.figures import Panel, gap_panels, panels
from xomni_rl.experiments.report.hacking import Gap, gaps
from xomni_rl.experiments.report.look import styles
from xomni_rl.experiments.report.overlay import methods, overlay_panels, run_name
from xomni_rl.experiments.report.timeline import ROWS, Grid, heldout_grid

_HERE = Path(__file__).parent
LARGEST_PICTURE = 384  # px, longest side; larger pictures are embedded reduced
LARGEST_FILE = 48 * 1024  # bytes; pictures of more are embedded as JPEG
EXTREMES = 8  # best and worst rollouts shown, each
SECTION_TITLES = {"curves": "Curves", "health": "Health of the optimisation", "time": "Time and memory"}


@dataclass(frozen=True)
class RunView:
    """One run as the template shows it.

    Attributes:
        name: its heading; key: what its figures' names begin with.
        hacks: log-only rewards that a widening gap was found for; judged: how many were looked at.
        sections: heading → panels; gaps, advantages: panels that have places of their own.
    """

    run: RunData
    name: str
    key: str
    facts: list[tuple[str, str]]
    hacks: list[Gap]
    judged: int
    grid: Grid | None
    counts: dict[str, int] | None
    extremes: list[tuple[str, list[Sample]]]
    sections: list[tuple[str, list[Panel]]]
    gaps: list[Panel]
    advantages: list[Panel]
    config_text: str
    manifest_text: str

    @property
    def panels(self) -> list[Panel]:
        return [*self.gaps, *self.advantages, *(panel for _, found in self.sections for panel in found)]


def build_report(run_folders: Path | str | Sequence[Path | str], out: Path | str | None = None, *, reload: float = 0.0) -> Path:
    """The report of one run, or of several on one page, as one self-contained HTML file.

    Args:
        run_folders: run folders, finished or not.
        out: where to write; None → `report.html` in the run folder, of several in the working folder. Written beside and
            renamed.
        reload: seconds after which the page loads itself again; 0 = never.
    Returns: the path written.
    Raises: ReportError when a folder is no run folder, is given twice, or a text file in it is damaged.
    """
    folders = [Path(run_folders)] if isinstance(run_folders, Path | str) else [Path(folder) for folder in run_folders]
    if not folders:
        raise ReportError("a report needs at least one run folder")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ReportError("a run folder is given twice")
    runs = [read_run(folder) for folder in folders]
    path = Path(out) if out is not None else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(render(runs, reload), encoding="utf-8")
    os.replace(beside, path)
    return path


def render(runs: Sequence[RunData], reload: float = 0.0) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent, "picture": picture_uri, "label": _label}
    views = [view(run, runs, number) for number, run in enumerate(runs)]
    of_folder = {one.run.folder: one for one in views}
    found = methods(runs) if len(runs) > 1 else {}
    overlay = overlay_panels(found) if found else {}
    every = [panel for made in overlay.values() for panel in made] + [panel for one in views for panel in one.panels]
    return environment.get_template("page.html").render(
        title=views[0].name if len(runs) == 1 else f"{len(runs)} runs",
        views=views,
        methods={name: [of_folder[run.folder] for run in made] for name, made in found.items()},
        headline_names=list(dict.fromkeys(headline.name for run in runs for headline in run.headlines[:2])),
        overlay=[(SECTION_TITLES[key], made) for key, made in overlay.items() if made],
        last_step=max((int(run.metrics.index.max()) for run in runs if len(run.metrics)), default=0),
        reload=reload,
        figures=Markup(figure_json(every)),
        nonce=secrets.token_urlsafe(16),
        css=styles(_HERE / "style.css", _HERE / "page.css"),
        script=Markup("\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("charts.js", "page.js"))),
        plotly=Markup(get_plotlyjs()),
    )


def view(run: RunData, runs: Sequence[RunData], number: int) -> RunView:
    """One of the page's runs: alone with all its panels and pictures, among others with a share of them."""
    alone = len(runs) == 1
    found = panels(run)
    judged = gaps(run)
    key = "" if alone else f"{number}-"
    shown = SECTION_TITLES if alone else {"time": SECTION_TITLES["time"]}
    parts = {name: [replace(panel, key=key + panel.key) for panel in made] for name, made in found.items()}
    return RunView(
        run=run,
        name=_own_name(run.folder.resolve()) if alone else run_name(run, runs),
        key=key,
        facts=_facts(run),
        hacks=[gap for gap in judged if gap.hacked],
        judged=len(judged),
        grid=heldout_grid(run, _is_picture, max(1, ROWS // len(runs))),
        counts=pair_counts(run.pairs),
        extremes=_extremes(run.rollouts, max(1, EXTREMES // len(runs))),
        sections=[(title, parts[name]) for name, title in shown.items() if parts[name]],
        gaps=[replace(panel, key=key + panel.key) for panel in gap_panels(judged)],
        advantages=parts["advantages"],
        config_text=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        manifest_text=json.dumps(run.manifest, indent=2, ensure_ascii=False) if run.manifest else "",
    )


def _own_name(folder: Path) -> str:
    """The folder's name; a bare number, as of a seed, with its parent's before it."""
    return f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name


def figure_json(found: Sequence[Panel]) -> str:
    """Panel key → figure, as JSON that is safe inside a script element."""
    body = ",".join(f"{json.dumps(panel.key)}:{panel.figure.to_json()}" for panel in found)
    text = "{" + body + "}"
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def picture_uri(sample: Sample) -> str:
    """The sample's picture as a data URI, its own bytes when small, else a JPEG of at most `LARGEST_PICTURE`."""
    if sample.image is None:
        raise ValueError(f"sample {sample.prompt_id}/{sample.index} has no picture")
    with Image.open(io.BytesIO(sample.image)) as image:
        kind, content = (image.format or "png").lower(), sample.image
        if max(image.size) > LARGEST_PICTURE or len(content) > LARGEST_FILE:
            reduced = image.convert("RGB")
            reduced.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
            buffer = io.BytesIO()
            reduced.save(buffer, "JPEG", quality=85)
            kind, content = "jpeg", buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def pair_counts(pairs: Sequence[Pair]) -> dict[str, int] | None:
    """How many shown prompts became right, went wrong, stayed right and stayed wrong; None without both sides."""
    judged = [(pair.before.correct, pair.after.correct) for pair in pairs if pair.after is not None]
    judged = [(before, after) for before, after in judged if before is not None and after is not None]
    if not judged:
        return None
    names = {(False, True): "became right", (True, False): "went wrong"}
    names |= {(True, True): "stayed right", (False, False): "stayed wrong"}
    return {name: sum(item == key for item in judged) for key, name in names.items()}


def _is_picture(sample: Sample) -> bool:
    if sample.image is None:
        return False
    try:
        with Image.open(io.BytesIO(sample.image)):
            return True
    except UnidentifiedImageError:
        return False


def _extremes(rollouts: Sequence[Sample], limit: int) -> list[tuple[str, list[Sample]]]:
    """("Best", samples), ("Worst", samples) among the rollouts with a picture and a score; one per prompt, disjoint;
    none is worst with the best score."""
    shown = [sample for sample in rollouts if not math.isnan(sample.score) and _is_picture(sample)]
    ordered = sorted(shown, key=lambda sample: sample.score, reverse=True)
    best = list({sample.prompt_id: sample for sample in reversed(ordered)}.values())
    best = sorted(best, key=lambda sample: sample.score, reverse=True)[:limit]
    below = [sample for sample in ordered if sample.score < ordered[0].score and sample not in best]
    worst = list({sample.prompt_id: sample for sample in below}.values())
    worst = sorted(worst, key=lambda sample: sample.score)[:limit]
    return [(title, found) for title, found in (("Best", best), ("Worst", worst)) if found]


def _facts(run: RunData) -> list[tuple[str, str]]:
    """The line under the title: (label, value), only what the folder tells."""
    config, algorithm = run.config, run.config.get("algorithm") or {}
    weights = component_weights(config)
    seconds = run.summary.get("train_seconds")
    steps = run.summary.get("steps", int(run.metrics.index.max()) if len(run.metrics) else None)
    found: list[tuple[str, Any]] = [
        ("model", (config.get("model") or {}).get("path")),
        ("reward", ", ".join(f"{name} × {weight:g}" for name, weight in weights.items())),
        ("algorithm", algorithm.get("name")),
        ("prompts", (config.get("prompts") or {}).get("set")),
        ("seed", config.get("seed")),
        ("steps", steps),
        ("training time", None if seconds is None else _duration(float(seconds))),
        ("commit", short_commit(run.manifest)),
    ]
    return [(label, str(value)) for label, value in found if value not in (None, "")]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def _percent(headline: Headline, value: float | None) -> str:
    """Accuracies as percentages, any other figure as it is."""
    if value is None:
        return "–"
    accuracy = headline.name.startswith("ocr") and 0.0 <= value <= 1.0
    return f"{100 * value:.1f} %" if accuracy else f"{value:.3f}"


def _label(name: str) -> str:
    return {"ocr_exact": "OCR exact match", "ocr_char": "OCR character accuracy"}.get(name, name)
