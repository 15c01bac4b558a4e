"""Writes docs/algorithms/ from what the code says: a page per algorithm, the tables of all, the options that they share.

Equation, source and departures are the docstring of an algorithm's file, in Markdown: what is indented there is an equation.
Options come from its factory's docstring; defaults, advice and command from its YAML; metrics from its loss on a small batch.
Pages are written whole; of README.md and choosing.md only what lies between `<!-- made: NAME -->` and `<!-- end -->`. A picture
curves/NAME.png is shown on the page of NAME once it is there.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from xomni_rl.config import compose
from xomni_rl.policies.algorithms.base import Algorithm, algorithms, build_algorithm, try_out

CONF = Path(__file__).parent / "conf" / "algorithm"
DOCS = Path(__file__).parents[1] / "docs" / "algorithms"
SECTION = re.compile(r"^(Args|Returns|Raises|Source):\s*", re.MULTILINE)
ARGUMENT = re.compile(r"^    ([\w, ]+): ", re.MULTILINE)
MADE = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COMMAND = "python -m xomni_rl.experiments.algorithm_pages"
ASKS = {
    "greedy": "a greedy image per prompt",
    "values": "a critic",
    "entropy": "every token's entropy",
    "sampler_logprobs": "the trainer's log-probabilities before the update",
    "group": "whole groups",
}


def main(arguments: list[str] | None = None) -> int:
    """Writes what is out of date and names it. Returns: exit status; with --check, 1 if there was any."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, name what is out of date")
    parser.add_argument("--folder", type=Path, default=DOCS, help="where the documents are")
    given = parser.parse_args(arguments)
    texts = documents(given.folder)
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not given.check:
            path.write_text(texts[path], encoding="utf-8")
        print(f"{path} {'is out of date' if given.check else 'written'}")
    return int(given.check and bool(stale))


def documents(folder: Path = DOCS) -> dict[Path, str]:
    """Every document of the folder as it is to be."""
    written = {folder / f"{name}.md": page(name, folder) for name in choices()}
    return written | {path: with_tables(path) for path in (folder / "README.md", folder / "choosing.md")}


def with_tables(path: Path) -> str:
    """A document with the tables between its marks as they are to be."""
    made = {"advice": advice, "parts": parts, "shared": shared_options}
    return MADE.sub(lambda found: f"{found[1]}{made[found[2]]()}{found[3]}", path.read_text(encoding="utf-8"))


def choices() -> list[str]:
    """The choices of the group `algorithm`, in order."""
    return sorted(path.stem for path in CONF.glob("*.yaml"))


def page(name: str, folder: Path = DOCS) -> str:
    """The page of one choice; with its curve, if the folder has one."""
    about, made_of = card(name), configured(name)["name"]
    curve = f"\n![Held-out curves of {name}](curves/{name}.png)\n" if (folder / "curves" / f"{name}.png").exists() else ""
    against = "" if name == "grpo" else f"Beside GRPO: `xomni-rl ablate algorithm=grpo,{name} seed=0,1,2`.\n"
    metrics = ", ".join(f"`{metric}`" for metric in measured(built(name)))
    code, config = f"policies/algorithms/{made_of}.py", f"experiments/conf/algorithm/{name}.yaml"
    return f"""<!-- Made by `{COMMAND}` from the files named at the end. -->
# {name}

{described(name) if made_of == name else described_variant(name)}
## When to take it

{capital(about["When"])}

```bash
xomni-rl train algorithm={name}
```

{against}
## Options

{options(name) if made_of == name else variant_options(name)}
## What to expect

{capital(linked(about["Expect"]))}

[Metrics](README.md#metrics): {metrics}.

Files: [{code}](../../{code}), [{config}](../../{config}).
{curve}""".replace("\n\n\n", "\n\n")


def described(name: str) -> str:
    """What the file of a registered algorithm says about it."""
    body, sections = parsed(inspect.getmodule(algorithms.get(name)))
    return f"{linked(body)}\n\n{sourced(sections)}"


def described_variant(name: str) -> str:
    """What the filter of a choice says that is another algorithm with a filter."""
    from xomni_rl.policies.filters import FILTERS

    config = configured(name)
    body, sections = parsed(FILTERS[config["options"]["filter"]])
    begun = (
        f"[`{config['name']}`]({config['name']}.md) with a filter, by its configuration alone. What takes part in an update:"
    )
    return f"{begun}\n\n{body}\n\n{sourced(sections)}"


def sourced(sections: dict[str, str]) -> str:
    """Source and departures as two paragraphs."""
    came, _, departs = sections.get("Source", "ours.").partition(" Departs from ")
    whom, _, how = departs.partition(": ")
    return f"**Source.** {linked(came)}\n" + (f"\n**Departs from {whom}.** {capital(linked(how))}\n" if how else "")


def options(name: str) -> str:
    """Table of an algorithm's own options, with the defaults of its YAML."""
    factory = algorithms.get(name)
    defaults, rows = configured(name)["options"], []
    for names, what in arguments_of(parsed(factory)[1].get("Args", "")):
        if names != ["common"]:
            values = [f"`{plain(defaults[each])}`" for each in names]
            what = linked(what).rstrip(".").replace("None = ", "null = ")
            rows.append((", ".join(f"`{each}`" for each in names), ", ".join(values), what))
    shared = "[those that all share](choosing.md#options-that-all-share)"
    if "common" not in inspect.signature(factory).parameters:
        return table(("option", "default", "what"), rows)
    return f"{table(('option', 'default', 'what'), rows)}\nAnd {shared}.\n" if rows else f"Only {shared}.\n"


def variant_options(name: str) -> str:
    """Table of the options in which a choice differs from the algorithm that it is made of."""
    config = configured(name)
    made_of, values = config["name"], config["options"]
    base = configured(made_of)["options"]
    rows = [(f"`{key}`", f"`{plain(values[key])}`", f"`{plain(base[key])}`") for key in values if values[key] != base[key]]
    return f"{table(('option', 'here', f'in `{made_of}`'), rows)}\nAnd those of [`{made_of}`]({made_of}.md).\n"


def advice() -> str:
    """Table of all choices: what each is, and when to take it."""
    rows = []
    for name in choices():
        made_of = configured(name)["name"]
        title = parsed(inspect.getmodule(algorithms.get(name)))[0] if made_of == name else ""
        what = title.partition("\n")[0].rstrip(".") or f"`{made_of}` with the filter `{configured(name)['options']['filter']}`"
        rows.append((f"[`{name}`]({name}.md)", what, card(name)["When"].rstrip(".")))
    return table(("choice", "what", "when"), rows)


def parts() -> str:
    """Table of what each choice is made of, and whether TRL's GRPOTrainer can train it."""
    from xomni_rl.policies.trl_engine import algorithm_options

    rows = []
    for name in choices():
        algorithm = built(name)
        loss, knobs = unbound(algorithm.loss)
        surrogate = unbound(knobs["surrogate"])[0] if "surrogate" in knobs else loss
        advantage = unbound(built(name, compare_kept=False).advantage)[0] if "surrogate" in knobs else algorithm.advantage
        try:
            trl = "yes" if algorithm_options(algorithm) else ""
        except ValueError:
            trl = "–"
        codes = (advantage.__name__, surrogate.__name__, knobs.get("aggregation", ""), unbound(algorithm.filter)[0].__name__)
        needs = ", ".join(ASKS[need] for need in sorted(algorithm.needs))
        cells = [f"`{code}`" if code else "pairs" for code in codes]
        rows.append((f"[`{name}`]({name}.md)", *cells, needs or "–", str(algorithm.least_group_size), trl))
    return table(("choice", "advantage", "surrogate", "mean", "filter", "needs", "least `group_size`", "TRL"), rows)


def shared_options() -> str:
    """Table of the options that all policy-gradient algorithms take, from the comments of their YAML."""
    lines = (CONF / "shared" / "common.yaml").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"  (\w+): (\S.*?) *# (.*)", line) for line in lines]
    return table(("option", "default", "what"), [(f"`{row[1]}`", f"`{row[2]}`", row[3]) for row in found if row])


def measured(algorithm: Algorithm) -> list[str]:
    """Names of the metrics that an update with an algorithm gives, but for those that every update has."""
    beside = ["value_loss", "explained_variance"] if "values" in algorithm.needs else []
    return [*try_out(algorithm), *beside, *(["resampled_share", "resample_rounds"] if algorithm.resample_rounds else [])]


@cache
def card(name: str) -> dict[str, str]:
    """The comments a YAML begins with: "Question", "When", "Run", "Expect", "Hardware", "Override" → text."""
    entries: dict[str, str] = {}
    for line in (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        key, colon, text = line.removeprefix("# ").partition(":")
        if colon and key.isalpha():
            last = key
            entries[key] = text.strip()
        else:
            entries[last] += " " + line.removeprefix("#").strip()
    return entries


@cache
def configured(name: str) -> dict[str, Any]:
    """Name and options that a choice stands for."""
    found = OmegaConf.to_container(compose([f"algorithm={name}"]).algorithm)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def built(name: str, **changed: Any) -> Algorithm:
    """The algorithm of a choice, with some options changed."""
    config = configured(name)
    return build_algorithm(config["name"], config["options"] | changed)


def unbound(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A function without its bound keywords, and these."""
    return (function.func, function.keywords) if isinstance(function, partial) else (function, {})


def parsed(entry: object) -> tuple[str, dict[str, str]]:
    """A docstring's text and its sections by name; of a section without its arguments, as one line."""
    text, *rest = SECTION.split(inspect.getdoc(entry) or "")
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    return text.strip(), {name: part if name == "Args" else " ".join(part.split()) for name, part in sections.items()}


def arguments_of(text: str) -> Iterator[tuple[list[str], str]]:
    """Names and description of every entry of a docstring's arguments."""
    _, *rest = ARGUMENT.split("    " + text)
    for names, what in zip(rest[::2], rest[1::2], strict=True):
        yield names.split(", "), " ".join(what.split())


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def plain(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(entry)}" for key, entry in value.items()) + "}"
    return str(value)


def linked(text: str) -> str:
    """Text with every arXiv number as a link."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def capital(text: str) -> str:
    """Text with its first letter large."""
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    sys.exit(main())
