"""Pages of the reference: for every room, what the docstrings of its public modules say."""

from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("envs", "experiments", "policies", "rewards")
PAGES = {
    "core": ("xomni_rl", "the command line's configuration, prompts, images and registries"),
    "prompt_sets": ("xomni_rl.prompt_sets", "where prompts come from"),
    "stack": ("xomni_rl.stack", "tokenizer, autoregressive model, sampler, decoder"),
    "rewards": ("xomni_rl.rewards", "every reward, the composite, the client and the server"),
    "envs": ("xomni_rl.envs", "Gymnasium environments and the rollout"),
    "policies": ("xomni_rl.policies", "policy, trainer, update, alarms, checkpoints"),
    "advantages": ("xomni_rl.policies.advantages", "from rewards to advantages"),
    "losses": ("xomni_rl.policies.losses", "from log-probabilities and advantages to a loss"),
    "algorithms": ("xomni_rl.policies.algorithms", "every policy algorithm"),
    "experiments": ("xomni_rl.experiments", "running, comparing, measuring"),
}
DOCTEST = re.compile(r'^(?P<indent> +)>>> .*\n(?:(?P=indent)(?!""").+\n)*', re.MULTILINE)
tree = tempfile.TemporaryDirectory(prefix="xomni-rl-docs-")


def copied_sources(folder: Path) -> None:
    """The package's modules laid out as they are installed: the rooms are subpackages of `xomni_rl`."""
    sources = {ROOT / "xomni_rl": folder / "xomni_rl"} | {ROOT / room: folder / "xomni_rl" / room for room in ROOMS}
    for origin, target in sources.items():
        for path in origin.rglob("*.py"):
            place = target / path.relative_to(origin)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(with_examples(path.read_text(encoding="utf-8")), encoding="utf-8")


def with_examples(source: str) -> str:
    """A module whose bare doctests are in a section of their own, as Markdown would take their prompts for quotations."""

    def section(match: re.Match[str]) -> str:
        if source[: match.start()].rstrip().endswith("Examples:"):
            return match[0]
        return f"{match['indent']}Examples:\n{textwrap.indent(match[0], '    ')}"

    return DOCTEST.sub(section, source)


def modules(package: str) -> Iterator[str]:
    """Public modules of a package, the package itself first; those of a package with a page of its own left out."""
    folder = Path(tree.name, *package.split("."))
    pages = {name for name, _ in PAGES.values()} - {package}
    yield package
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join([package, *(part for part in parts if part != "__init__")])
        elsewhere = any(name == other or name.startswith(f"{other}.") for other in pages if other.startswith(package))
        if name != package and not elsewhere and not any(part.startswith("_") and part != "__init__" for part in parts):
            yield name


def page(package: str, what: str) -> str:
    """Markdown from which mkdocstrings makes a room's page."""
    blocks = [f"::: {module}" for module in modules(package)]
    return "\n\n".join([f"# {package}", f"{what[0].upper()}{what[1:]}.", *blocks])


@event_priority(100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Shows mkdocstrings the sources, before it reads its configuration."""
    copied_sources(Path(tree.name))
    handlers: dict[str, Any] = config.plugins["mkdocstrings"].config["handlers"]
    handlers.setdefault("python", {})["paths"] = [tree.name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page per room, and the list of them."""
    rows = [f"| [`{package}`]({name}.md) | {what} |" for name, (package, what) in PAGES.items()]
    listing = "\n".join(["# Reference", "", "From the docstrings, room by room.", "", "| package | what |", "|---|---|", *rows])
    files.append(File.generated(config, "reference/README.md", content=listing))
    for name, (package, what) in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page(package, what)))
    return files
