"""`xomni-rl pretrain`, `bench` and `doctor`: the shell's side of jobs that live in `xomni_rl.experiments`."""

from __future__ import annotations

import ast
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from xomni_rl.config import ConfigError
from xomni_rl.registry import UnknownNameError, unknown_name


class Domain(StrEnum):
    """What a stack draws."""

    signs = "signs"
    long_signs = "long_signs"


def pretrain(
    out: Annotated[Path, typer.Option(help="Folder of the stack.")] = Path("stack"),
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps, to see it run; the stack is of no use.")] = False,
    domain: Annotated[Domain, typer.Option(help="What is drawn: signs, or larger ones with several lines.")] = Domain.signs,
) -> None:
    """Make a stack: the recipes of the embedded weights.

    Tokenizer, decoder and autoregressive model are trained one after the other; domain long_signs goes on from the embedded
    stack and trains the autoregressive model alone. Run it again to go on after a stop.

    Examples:

    • xomni-rl pretrain --out my_stack --seed 1

    • xomni-rl pretrain --domain long_signs --out my_long_stack

    • xomni-rl train model.path=my_stack
    """
    from xomni_rl.experiments.pretraining.long_signs import pretrain_long
    from xomni_rl.experiments.pretraining.recipe import pretrain as pretrain_signs

    make_stack = pretrain_long if domain is Domain.long_signs else pretrain_signs
    make_stack(out, seed, quick=quick)
    typer.echo(f"stack: {out}")


def bench(
    name: Annotated[str | None, typer.Argument(help="Which one, or all; left out: list them.", show_default=False)] = None,
) -> None:
    """Measure against peers, in ratios taken in one run.

    Prints a table, then one last line of JSON with the key "ratio".

    Examples:

    • xomni-rl bench sampler

    • xomni-rl bench all
    """
    known = benchmarks()
    if name is None:
        from xomni_rl.commands.listing import print_benchmarks

        print_benchmarks()
        return
    if name != "all" and name not in known:
        raise UnknownNameError(unknown_name("benchmark", name, [*known, "all"]))
    for each in known if name == "all" else [name]:
        typer.echo(json.dumps(_run_benchmark(each), default=float))


def doctor(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[reward=NAME reward.…=VALUE …]", help="Examine this reward, and nothing else.", show_default=False
        ),
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Compare with the fixtures of this folder, and nothing else.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Examine this published X-Omni folder, and nothing else.", show_default=False)
    ] = None,
    flux: Annotated[Path | None, typer.Option(help="FLUX.1-dev's folder, with --checkpoint.", show_default=False)] = None,
) -> None:
    """Is this installation in order? Is this reward? Is this checkpoint?

    Checks versions, the machine, the embedded weights and every reward on its good and bad image. With reward=NAME, examines
    its components: calibration scores, time, memory, versions, hashes, and whether it is constant, out of range, random or
    dependent on the batch. With --golden, parity with the public implementation. With --checkpoint, what is missing from a
    downloaded folder or doesn't fit its configuration, before 15 GB are read. Exit status 1 if something is not in order.

    Examples:

    • xomni-rl doctor

    • xomni-rl doctor reward=ocr reward.components.ocr.options.metric=f1

    • xomni-rl doctor --golden tests/golden

    • xomni-rl doctor --checkpoint X-Omni-En --flux FLUX.1-dev
    """
    config = reward_of(overrides) if overrides else None
    from xomni_rl.experiments.doctor import check_checkpoint, check_golden, check_installation, check_rewards

    if config is not None:
        from xomni_rl.rewards.composite import build_composite

        in_order = check_rewards(build_composite(config))
    elif checkpoint is not None:
        in_order = check_checkpoint(checkpoint, flux)
    else:
        in_order = check_installation() if golden is None else check_golden(golden)
    if not in_order:
        raise typer.Exit(1)


def reward_of(overrides: list[str]) -> dict[str, Any]:
    """["reward=ocr", "reward.components.ocr.weight=2"] as the configuration of a composite.

    Raises: ConfigError without a reward=NAME, with an option among them, or for what cannot be composed.
    """
    from xomni_rl.config import reward_config

    choices = [override.removeprefix("reward=") for override in overrides if override.startswith("reward=")]
    if len(choices) != 1:
        raise ConfigError("name the reward once, as in reward=ocr; its options follow as reward.components.NAME.KEY=VALUE")
    return reward_config(choices[0], [override for override in overrides if not override.startswith("reward=")])


def benchmarks() -> dict[str, tuple[Path, str]]:
    """Benchmark → (file, first line of its docstring), read from the package's folders without importing any."""
    from xomni_rl.experiments import benchmarks as package

    found = {}
    for path in (path for folder in package.__path__ for path in Path(folder).glob("*.py")):
        if not path.name.startswith("_"):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = (path, docstring.partition("\n")[0])
    return dict(sorted(found.items()))


def parse_options(options: list[str]) -> dict[str, dict[str, Any]]:
    """ "ocr.metric=exact" as {"ocr": {"metric": "exact"}}; values are YAML. Raises: ConfigError for another form."""
    import yaml

    parsed: dict[str, dict[str, Any]] = {}
    for option in options:
        path, equals, value = option.partition("=")
        reward, dot, key = path.rpartition(".")
        if not (equals and dot and reward and key):
            raise ConfigError(f"--option must read REWARD.KEY=VALUE, such as ocr.metric=exact, but is {option!r}")
        try:
            parsed.setdefault(reward, {})[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--option {option!r}: the value is not YAML") from error
    return parsed


def _run_benchmark(name: str) -> dict[str, Any]:
    import importlib

    figures: dict[str, Any] = importlib.import_module(f"xomni_rl.experiments.benchmarks.{name}").run()
    return figures
