"""`xomni-rl doctor`: versions, machine, embedded weights, every reward's self-check, and parity with golden fixtures.

With `reward=…` it examines the components of that reward, and nothing else.
"""

from __future__ import annotations

import inspect
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from xomni_rl.rewards.base import RewardUnavailableError, build_reward, rewards
from xomni_rl.rewards.component import Component
from xomni_rl.rewards.composite import CompositeReward
from xomni_rl.rewards.health import Examination, examine, quick_check

PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "gymnasium", "hydra-core", "numpy", "onnxruntime", "rapidocr")
MARKS = {True: "[green]ok[/green]", False: "[bold red]not in order[/bold red]", None: ""}
BATCH = 16
"""Images in the batch that a reward is timed on."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        name: what was looked at.
        value: what was found.
        ok: whether it is in order; None = there is nothing to judge.
    """

    name: str
    value: str
    ok: bool | None = None


def check_installation(console: Console | None = None) -> bool:
    """Prints everything there is to know of this installation; True if nothing is out of order."""
    console = console or Console()
    findings: list[Finding] = []
    for title, part in (("machine", machine()), ("embedded stack", embedded_stack()), ("rewards", reward_checks())):
        findings += print_findings(title, part, console)
    return all(finding.ok is not False for finding in findings)


def check_rewards(reward: CompositeReward, console: Console | None = None) -> bool:
    """Prints an examination of each component; True if none is flagged. A reward that cannot be loaded is flagged."""
    console = console or Console()
    findings: list[Finding] = []
    for part in reward.parts:
        findings += print_findings(part.name, examined(part), console)
    return all(finding.ok is not False for finding in findings)


def print_findings(title: str, part: Iterator[Finding], console: Console) -> list[Finding]:
    """Prints findings as one table, and returns them."""
    findings = list(part)
    table = Table("what", Column("found", overflow="fold"), "", title=title, title_justify="left")  # no address is cut
    for finding in findings:
        table.add_row(Text(finding.name), Text(finding.value), MARKS[finding.ok])
    console.print(table)
    return findings


def check_golden(folder: str | Path, console: Console | None = None) -> bool:
    """Prints how far our classes are from the fixtures of a folder; True if every figure is within its limit.

    Raises: StackError if the folder holds no fixtures, or damaged ones.
    """
    from xomni_rl.stack.golden import compare_golden

    rows = compare_golden(folder)
    table = Table("what", "kind", "found", "at most", "", title=f"parity with {folder}", title_justify="left")
    for row in rows:
        shown = f"{row.value:.3g}" if row.kind == "difference" else f"{row.value:.0f}"
        table.add_row(row.name, row.kind, shown, f"{row.limit:g}", MARKS[row.ok])
    (console or Console()).print(table)
    return all(row.ok for row in rows)


def check_checkpoint(folder: Path, flux: Path | None, console: Console | None = None) -> bool:
    """Prints every part of a published X-Omni folder with what is wrong with it; True if nothing is.

    Only headers are read, but for a projector that PyTorch pickled.

    Raises: StackError if the folder is in another layout, or its config.json is damaged.
    """
    from xomni_rl.stack.checkpoint import is_published, problems, read_published
    from xomni_rl.stack.stack import StackError

    if not is_published(folder):
        raise StackError(f'{folder} is no published X-Omni checkpoint: it has no config.json with "model_type": "x-omni"')
    try:
        published = read_published(folder, flux)
    except ValueError as error:
        raise StackError(str(error)) from error
    parts = (Finding(part, problem or "", problem is None) for part, problem in problems(published))
    found = print_findings(str(folder), parts, console or Console())
    return all(finding.ok for finding in found)


def machine() -> Iterator[Finding]:
    """Python, packages, cores, memory, GPU."""
    import torch

    yield Finding("python", f"{platform.python_version()} on {platform.platform(terse=True)}", True)
    for package in PACKAGES:
        try:
            yield Finding(package, version(package), True)
        except PackageNotFoundError:
            yield Finding(package, "not installed", False)
    yield Finding("cores", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}")
    yield Finding("torch threads", str(torch.get_num_threads()))
    if hasattr(os, "sysconf"):
        yield Finding("memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("GPU", ", ".join(names) or "none")


def embedded_stack() -> Iterator[Finding]:
    """Whether the weights that come with the package are there, whole, and which they are."""
    from xomni_rl.stack.stack import Stack, StackError

    try:
        stack = Stack.from_pretrained("embedded")
    except StackError as error:
        yield Finding("embedded", str(error), False)
        return
    for part, digest in stack.weight_hashes().items():
        yield Finding(part, f"sha256 {digest[:16]}", True)


def reward_checks() -> Iterator[Finding]:
    """Whether every reward ranks its own good image above its worthless one; nothing is downloaded for it.

    A reward whose weights, package or server are not here, or that must be told something first, is no fault of the
    installation.
    """
    with hub_offline():
        for name in rewards.names():
            yield _checked(name)


def examined(part: Component) -> Iterator[Finding]:
    """Everything that the doctor knows of one component, what is flagged last."""
    reward, found = part.reward, examine(part.name, part.reward, BATCH)
    yield Finding("reward", f"{reward.name}, version {found.version or 'unknown'}, weight {part.weight:g}")
    with suppress(RewardUnavailableError):  # a served reward that is not there says nothing of itself
        better = "higher" if reward.higher_is_better else "lower"
        yield Finding("range", f"{reward.range[0]:g} to {reward.range[1]:g}, {better} is better")
    if found.scores is not None:
        yield Finding("calibration", f"good image {found.scores[0]:.4f}, worthless image {found.scores[1]:.4f}")
    for unknown in found.not_examined:
        yield Finding("not examined", unknown)
    yield from _costs(found)
    for package, number in found.packages.items():
        yield Finding(package, number)
    for file, digest in found.files.items():
        yield Finding(Path(file).name, f"sha256 {digest[:16]}")
    flags = [*found.errors, *found.warnings]
    for flag in flags:
        yield Finding("flagged", flag, False)
    if not flags:
        yield Finding("flagged", "nothing", True)


def _costs(found: Examination) -> Iterator[Finding]:
    if found.errors:
        return
    yield Finding("loaded in" if found.scores is None else "loaded and pair scored in", f"{found.load_seconds:.2f} s")
    if found.seconds_per_image is not None:
        yield Finding("time per image", f"{1000 * found.seconds_per_image:.2f} ms in a batch of {found.batch}")
    if found.memory is not None:
        yield Finding("memory", f"the process grew by {found.memory / 2**20:.0f} MiB")
    if found.parameters:
        yield Finding("model", f"{found.parameters / 1e6:.1f} million parameters loaded for it")


def _checked(name: str) -> Finding:
    entry = rewards.get(name)
    missing = [
        option
        for option, parameter in (inspect.signature(entry).parameters.items() if isinstance(entry, type) else ())
        if parameter.default is parameter.empty and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if missing:
        return Finding(name, f"not checked: it needs the option {', '.join(missing)}")
    try:
        reward = build_reward(name)
    except ValueError as error:  # it must be told something first, and says what
        return Finding(name, f"not checked: {error}")
    try:
        reward.load()
    except RewardUnavailableError as error:
        return Finding(name, f"not here: {error}")
    except Exception as error:  # whatever an installed plug-in raises
        return Finding(name, f"{type(error).__name__}: {error}", False)
    health = quick_check(name, reward)
    if flags := [*health.errors, *health.warnings]:
        return Finding(name, "; ".join(flags), False)
    if health.scores is None:
        return Finding(name, f"version {health.version}: loaded; it has no calibration pair")
    good, worthless = health.scores
    return Finding(name, f"version {health.version}: good image {good:.3f}, worthless image {worthless:.3f}", True)


@contextmanager
def hub_offline() -> Iterator[None]:
    """The model hub answers from its cache alone: looking must not download gigabytes."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
