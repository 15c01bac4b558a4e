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
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError
from plotly.offline import get_plotlyjs

from xomni_rl.experiments.report.data import Headline, Pair, RunData, Sample, component_weights, read_run, short_commit
from xomni_rl.experiments.report.figures import Panel, panels

_HERE = Path(__file__).parent
LARGEST_PICTURE = 384  # px, longest side; larger pictures are embedded reduced
EXTREMES = 8  # best and worst rollouts shown, each
SECTION_TITLES = {"curves": "Curves", "health": "Health of the optimisation", "time": "Time"}


def build_report(run_folder: Path | str, out: Path | str | None = None) -> Path:
    """The run's report as one self-contained HTML file.

    Args:
        run_folder: a run folder, finished or not.
        out: where to write; None → `<run_folder>/report.html`. Written beside and renamed.
    Returns: the path written.
    Raises: ReportError when the folder is no run folder or a text file in it is damaged.
    """
    run = read_run(Path(run_folder))
    path = Path(out) if out is not None else run.folder / "report.html"
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(render(run), encoding="utf-8")
    os.replace(beside, path)
    return path


def render(run: RunData) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent, "picture": picture_uri, "label": _label}
    sections = panels(run)
    return environment.get_template("page.html").render(
        run=run,
        facts=_facts(run),
        sections=[(SECTION_TITLES[key], sections[key]) for key in SECTION_TITLES if sections[key]],
        advantages=sections["advantages"],
        main_headlines=run.headlines[:2],
        further_headlines=run.headlines[2:],
        pairs=[pair for pair in run.pairs if _is_picture(pair.before)],
        counts=pair_counts(run.pairs),
        extremes=_extremes(run.rollouts),
        figures=Markup(figure_json([panel for found in sections.values() for panel in found])),
        config_text=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        manifest_text=json.dumps(run.manifest, indent=2, ensure_ascii=False) if run.manifest else "",
        nonce=secrets.token_urlsafe(16),
        css=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "charts.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


def figure_json(found: Sequence[Panel]) -> str:
    """Panel key → figure, as JSON that is safe inside a script element."""
    body = ",".join(f"{json.dumps(panel.key)}:{panel.figure.to_json()}" for panel in found)
    text = "{" + body + "}"
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def picture_uri(sample: Sample) -> str:
    """The sample's picture as a data URI, its own bytes when small, else reduced to `LARGEST_PICTURE`."""
    if sample.image is None:
        raise ValueError(f"sample {sample.prompt_id}/{sample.index} has no picture")
    with Image.open(io.BytesIO(sample.image)) as image:
        kind, content = (image.format or "png").lower(), sample.image
        if max(image.size) > LARGEST_PICTURE:
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


def _extremes(rollouts: Sequence[Sample]) -> list[tuple[str, list[Sample]]]:
    """("Best", samples), ("Worst", samples) among the rollouts with a picture and a score; one per prompt, disjoint;
    none is worst with the best score."""
    shown = [sample for sample in rollouts if not math.isnan(sample.score) and _is_picture(sample)]
    ordered = sorted(shown, key=lambda sample: sample.score, reverse=True)
    best = list({sample.prompt_id: sample for sample in reversed(ordered)}.values())
    best = sorted(best, key=lambda sample: sample.score, reverse=True)[:EXTREMES]
    below = [sample for sample in ordered if sample.score < ordered[0].score and sample not in best]
    worst = list({sample.prompt_id: sample for sample in below}.values())
    worst = sorted(worst, key=lambda sample: sample.score)[:EXTREMES]
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
