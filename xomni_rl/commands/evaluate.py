"""`xomni-rl evaluate`: benchmark suites, from the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from xomni_rl.commands.draw import DtypeOption, FluxOption, load_stack, parse_size
from xomni_rl.config import ConfigError

BESIDE_RECOGNISED = ("suite", "recognised", "language", "compat", "seed", "as_json")


def evaluate(
    context: typer.Context,
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]CHECKPOINT|IMAGES…",
            help="embedded, a stack's, run's or images' folder; two or more are compared.",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[str, typer.Option(help="Which benchmark; xomni-rl list suites names them.")] = "signs",
    prompts: Annotated[
        Path | None, typer.Option(help="The suite's published prompt file; signs needs none.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of images, samples.parquet, summary.json.", show_default="evaluation/SUITE")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Option of the suite, as in vlm.url=…; may be repeated.", show_default=False),
    ] = None,
    recognised: Annotated[
        Path | None,
        typer.Option(help="Suite longtext: score these stored recognitions and print one line of JSON.", show_default=False),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Suite longtext: en counts words, zh characters.", show_default="the file's, or en")
    ] = None,
    compat: Annotated[
        str | None,
        typer.Option(
            help="published: the published script's arithmetic; fixed: its faults repaired.", show_default="published"
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Only the first so many prompts; 0 = all.")] = 0,
    count: Annotated[int | None, typer.Option(min=1, help="Images per prompt.", show_default="as published")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, prompt and number: same image.")] = 0,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Height x width, px; default: the prompt's or stack's.", show_default=False),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Above 0; less = more certain tokens.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Only the k likeliest tokens; 0 = all.")] = 0,
    top_p: Annotated[float, typer.Option(max=1.0, help="Only the likeliest tokens that make up this share.")] = 1.0,
    min_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Only tokens this likely against the likeliest.")] = 0.0,
    cfg_scale: Annotated[float, typer.Option(min=0.0, help="Classifier-free guidance; 1 = none.")] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images scored at a time.")] = 32,
    flux: FluxOption = None,
    dtype: DtypeOption = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one line of JSON, the table on stderr.")
    ] = False,
) -> None:
    """Draw and score a benchmark's images, with intervals and paired differences.

    A stack draws the images, each prompt from a stream of its own; a folder of images holds them by the suite's names. Run
    again after a stop, it goes on where it was. Exit status 1 if an image is missing or was not scored; the rest is.

    With --recognised nothing is drawn or read: each line holds {"ground_truth": ["a text", …], "recognised": "what was read"}.

    Examples:

    • xomni-rl evaluate embedded --suite signs

    • xomni-rl evaluate before=embedded after=runs/seed1 --suite signs --out evaluation/seed1

    • xomni-rl evaluate pictures --suite longtext --prompts longtext/en.jsonl --compat fixed

    • xomni-rl evaluate X-Omni-En --flux FLUX.1-dev --suite geneval --prompts geneval.jsonl --device cuda

    • xomni-rl evaluate pictures --suite dpg --prompts dpg_bench.csv --option vlm.backend=server
    --option vlm.url=http://127.0.0.1:8000/v1 --option vlm.model=judge

    • xomni-rl evaluate --suite longtext --recognised readings.jsonl --language en --compat published
    """
    if recognised is not None:
        _refuse_beside_recognised(context)
        _rescore(suite, recognised, language or "en", compat or "published", seed)
        return
    options = parse_suite_options(option or [])
    options |= {key: value for key, value in (("language", language), ("compat", compat)) if value is not None}
    pixels = parse_size(size)
    from rich.console import Console

    from xomni_rl.experiments.evaluation import run, show
    from xomni_rl.experiments.evaluation.pictures import Drawing
    from xomni_rl.experiments.evaluation.suite import build_suite
    from xomni_rl.stack.distribution import SamplingConfig

    labelled = run.labels_of(places or [])
    made = build_suite(suite, options)
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, cfg_scale=cfg_scale)
    found = run.evaluate(
        made,
        labelled,
        out or Path("evaluation") / suite,
        Drawing(sampling, seed, pixels, count or made.images_per_prompt),
        lambda place: load_stack(place, device, flux, dtype),
        prompts=prompts,
        limit=limit,
        batch_size=batch_size,
        console=Console(stderr=True),
    )
    show.show(found, show.console(stderr=as_json))
    if as_json:
        typer.echo(json.dumps(found.summary, ensure_ascii=False, default=str))
    else:
        typer.echo(f"samples: {found.out / 'samples.parquet'}, summary: {found.out / 'summary.json'}")
    if not found.complete:
        raise typer.Exit(1)


def parse_suite_options(options: list[str]) -> dict[str, Any]:
    """["vlm.url=http://…", "layout=line"] as {"vlm": {"url": …}, "layout": "line"}; values are YAML.

    Raises: ConfigError for another form, or a key that is both a value and a mapping.
    """
    import yaml

    parsed: dict[str, Any] = {}
    for option in options:
        path, equals, value = option.partition("=")
        *parents, key = path.split(".")
        if not equals or not all([*parents, key]):
            raise ConfigError(f"--option must read KEY=VALUE, such as layout=line, but is {option!r}")
        place = parsed
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--option {option!r}: {parent} has a value already, so it can't have keys")
        try:
            place[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--option {option!r}: the value is not YAML") from error
    return parsed


def _refuse_beside_recognised(context: typer.Context) -> None:
    """Raises: ConfigError for what was given and would be of no consequence, places among it."""
    sources = {each.name: context.get_parameter_source(str(each.name)) for each in context.command.params}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    idle = [each for each in context.command.params if each.name in given.difference(BESIDE_RECOGNISED)]
    if idle:
        names = ", ".join(each.opts[0] if each.name != "places" else context.params["places"][0] for each in idle)
        raise ConfigError(f"--recognised scores what was read already, to which {names} would change nothing; leave one out")


def _rescore(suite: str, recognised: Path, language: str, compat: str, seed: int) -> None:
    """Prints the score of stored recognitions."""
    if suite != "longtext":
        raise ConfigError(f"--recognised is for the suite longtext, not for {suite}")
    from xomni_rl.experiments.evaluation.longtext_counts import check_choices, read_recognitions, score_recognitions

    check_choices(language, compat)
    figures = score_recognitions(read_recognitions(recognised), language, compat, seed)
    typer.echo(json.dumps(figures, ensure_ascii=False))
