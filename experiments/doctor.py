"""`xomni-rl doctor`: versions, machine, embedded weights, every reward's self-check, and parity with golden fixtures."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from xomni_rl.rewards.base import Reward, RewardError, build_reward, rewards

PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "gymnasium", "hydra-core", "numpy", "onnxruntime", "rapidocr")
MARKS = {True: "[green]ok[/green]", False: "[bold red]not in order[/bold red]", None: ""}


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
        found = list(part)
        findings += found
        table = Table("what", "found", "", title=title, title_justify="left")
        for finding in found:
            table.add_row(finding.name, finding.value, MARKS[finding.ok])
        console.print(table)
    return all(finding.ok is not False for finding in findings)


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
    """Whether every reward ranks its own good image above its worthless one."""
    for name in rewards.names():
        try:
            yield _checked(build_reward(name))
        except NotImplementedError as error:
            yield Finding(name, str(error))
        except (RewardError, ImportError, OSError, ValueError) as error:
            yield Finding(name, f"{type(error).__name__}: {error}", False)


def _checked(reward: Reward) -> Finding:
    good, bad, prompt = reward.self_check()
    high, low = (float(reward([image], [prompt]).scores[0]) for image in (good, bad))
    better = high > low if reward.higher_is_better else high < low
    shown = f"version {reward.version}: good image {high:.3f}, worthless image {low:.3f}"
    return Finding(reward.name, shown, bool(better and np.isfinite([high, low]).all()))
