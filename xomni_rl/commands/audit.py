"""`xomni-rl audit`: how a reward can be fooled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xomni_rl.commands.jobs import reward_of
from xomni_rl.config import ConfigError

DEFAULT_COUNT = 32


def audit(
    overrides: Annotated[
        list[str],
        typer.Argument(
            metavar="reward=NAME [reward.…=VALUE …]", help="The reward, and what to change in it.", show_default=False
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of your own pictures, right for their prompts; default: signs.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Their prompts, .jsonl or .txt; default: prompts.jsonl among them.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("audit"),
    count: Annotated[int, typer.Option(min=2, help="Samples; every one is perturbed in some 55 ways.")] = DEFAULT_COUNT,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per call of a reward.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, noise and the intervals' bootstrap.")] = 0,
) -> None:
    """How can this reward be fooled?

    Scores right pictures, the same ones worse (blur, JPEG, noise, …), wrong (other text, other colour, blank, another
    prompt's) and bought (spam, tiny type, saturation, …). Prints what each costs or buys, with intervals, and a verdict per
    reward; writes audit.csv, audit.json and audit.png. On your own pictures, what must draw text is left out.

    Examples:

    • xomni-rl audit reward=ocr

    • xomni-rl audit reward=ocr reward.components.ocr.options.metric=recall --count 16 --out audits/recall

    • xomni-rl audit reward=sharpness --images pictures --prompts prompts.jsonl
    """
    config = reward_of(overrides)
    if prompts is not None and images is None:
        raise ConfigError("--prompts belongs to pictures of your own: give --images FOLDER too")
    if images is not None and not images.is_dir():
        raise ConfigError(f"{images} is no folder of images")
    prompts = prompts or (images / "prompts.jsonl" if images is not None else None)
    if prompts is not None and not prompts.exists():
        raise ConfigError(f"there are no prompts at {prompts}; give --prompts FILE")
    from rich.console import Console

    from xomni_rl.experiments.audit_report import audit_reward, folder_samples
    from xomni_rl.rewards.audit import sign_samples
    from xomni_rl.rewards.composite import build_composite

    reward = build_composite(config)
    samples = sign_samples(count, seed) if images is None or prompts is None else folder_samples(images, prompts, count)
    audit_reward(reward, out, samples=samples, config=config, batch_size=batch_size, seed=seed, console=Console())
