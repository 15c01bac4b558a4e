"""Which image belongs to which prompt: by name, by order, or by a table's column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xomni_rl.experiments.scoring.errors import ScoringError
from xomni_rl.experiments.scoring.files import image_files, natural, some
from xomni_rl.experiments.scoring.prompt_file import PromptFile, read_prompt_file
from xomni_rl.prompts import Prompt

_NUMBERED = re.compile(r"(.+)[_-](\d+)")


@dataclass(frozen=True, slots=True)
class Item:
    """One image to score.

    Args:
        path: of the file.
        name: relative to its folder, as the table has it.
        prompt: what was asked for.
        sample: which of the prompt's images it is, from 1.
        model: name of its folder, where several are compared; "" otherwise.
    """

    path: str
    name: str
    prompt: Prompt
    sample: int = 1
    model: str = ""


@dataclass(frozen=True)
class Match:
    """Images with their prompts.

    Args:
        items: in the order of the prompts; a prompt's images in natural order.
        how: what they were matched by, for people; "" = there are no prompts.
        missing: ids of prompts that were left out because they have no image.
        strangers: files that were left out because they belong to no prompt.
    """

    items: list[Item]
    how: str
    missing: list[str]
    strangers: list[str]


Pairs = list[tuple[int, str]]
"""(position of the prompt, file name)"""


def match_folder(
    folder: str | Path,
    prompts: str | Path,
    *,
    match: str = "auto",
    partial: bool = False,
    recursive: bool | None = None,
    model: str = "",
) -> Match:
    """The images of a folder with their prompts.

    Args:
        folder: holds the images.
        prompts: file of prompts.
        match: name, index, a table's column, or auto: the first of column, name and index that applies.
        partial: leave out prompts without an image and images without a prompt instead of refusing them.
        recursive: as in `image_files`.
        model: goes into the items.
    Raises: ScoringError naming the files and prompts that have no or several partners; PromptError and OSError as they come.
    """
    folder = Path(folder)
    files = image_files(folder, recursive)
    source = read_prompt_file(prompts, match)
    pairs, how = _matched(files, source, match, partial)
    return _checked(folder, files, source, pairs, how, partial, model)


def without_prompts(folder: str | Path, *, recursive: bool | None = None, model: str = "") -> list[Item]:
    """The images of a folder in natural order, for rewards that read no prompt; its relative name stands for each one's prompt.

    Args: as in `match_folder`.
    Raises: ScoringError as `image_files` does.
    """
    folder = Path(folder)
    names = image_files(folder, recursive)
    return [Item(str(folder / name), name, Prompt(id=name, text=name), model=model) for name in names]


def _matched(files: Sequence[str], source: PromptFile, match: str, partial: bool) -> tuple[Pairs, str]:
    if source.cells is not None:
        return _by_column(files, source.cells, source.prompts), f'column "{source.column}"'
    if match != "index":
        pairs, exact = _by_name(files, source.prompts)
        if pairs or match == "name":
            return pairs, "name" if exact else "name, several images for one prompt"
    return _by_order(files, source.prompts, partial)


def _by_column(files: Sequence[str], cells: Sequence[str], prompts: Sequence[Prompt]) -> Pairs:
    """Rows name a file by its relative path, or by its last part, with or without suffix.

    Several may name one image for one prompt, as those of several models do in a table of scores.
    """
    lookup: dict[str, list[str]] = {}
    for name in files:
        path = PurePosixPath(name)
        for key in {name, str(path.with_suffix("")), path.name, path.stem}:
            lookup.setdefault(key, []).append(name)
    pairs: dict[tuple[str, str], int] = {}
    for position, cell in enumerate(cells):
        path = PurePosixPath(cell.replace("\\", "/"))
        found = lookup.get(str(path)) or lookup.get(path.name) or []
        exact = [name for name in found if name == str(path)]
        if len(found) > 1 and not exact:
            raise ScoringError(f'row {position + 1} names "{cell}", which is several images: {some(found)}')
        for name in exact or found:
            pairs.setdefault((name, prompts[position].id), position)
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise ScoringError(f"rows of several prompts name one image: {some(twice)}")
    return [(position, name) for (name, _), position in pairs.items()]


def _by_name(files: Sequence[str], prompts: Sequence[Prompt]) -> tuple[Pairs, bool]:
    """Pairs of the files whose name holds an id, and whether every name is just an id."""
    position = {prompt.id: index for index, prompt in enumerate(prompts)}
    pairs, taken, exact = [], dict[tuple[int, str], list[str]](), True
    for name in files:
        found = _id_in(name, position)
        if found is not None:
            identity, rest = found
            pairs.append((position[identity], name))
            taken.setdefault((position[identity], rest), []).append(name)
            exact = exact and not rest
    several = [name for names in taken.values() if len(names) > 1 for name in names]
    if several:
        raise ScoringError(f"several images for one prompt: {some(several)}")
    return sorted(pairs, key=lambda pair: pair[0]), exact


def _id_in(name: str, known: Mapping[str, int]) -> tuple[str, str] | None:
    """(id, what else the name says): the whole path, a folder on it, the file's name, or that before `_2` or `-2`."""
    path = PurePosixPath(name)
    whole = str(path.with_suffix(""))
    if whole in known:
        return whole, ""
    for parent in path.parent.parts:
        if parent in known:
            return parent, whole
    if path.stem in known:
        return path.stem, ""
    numbered = _NUMBERED.fullmatch(path.stem)
    return (numbered[1], numbered[2]) if numbered and numbered[1] in known else None


def _by_order(files: Sequence[str], prompts: Sequence[Prompt], partial: bool) -> tuple[Pairs, str]:
    """Files, or groups of them, in natural order; with `partial` the numbers they are named by."""
    groups = _groups(files)
    what = "index" if len(groups) == len(files) else "index, several images for one prompt"
    if len(groups) == len(prompts):
        return [(position, name) for position, names in enumerate(groups.values()) for name in names], what
    if partial:
        positions = _numbers(list(groups), len(prompts))
        pairs = [(number, name) for number, names in zip(positions, groups.values(), strict=True) for name in names]
        return sorted(pairs, key=lambda pair: pair[0]), what
    raise ScoringError(
        f"{len(groups)} images and {len(prompts)} prompts: no file name is a prompt id, and they can only be matched"
        f" in order if there are as many; the first image is {files[0]}, the first id {prompts[0].id}"
        " (--partial takes numbered files of a part of the prompts, --match COLUMN a table's column)"
    )


def _groups(files: Sequence[str]) -> dict[str, list[str]]:
    """Files of one folder, or numbered `7_1`, `7_2`, belong together; otherwise each stands alone."""
    stems = [_NUMBERED.fullmatch(PurePosixPath(name).stem) for name in files]
    numbered = all(stem is not None and stem[1].isdecimal() for stem in stems)
    groups: dict[str, list[str]] = {}
    nested = all("/" in name for name in files)
    for name, stem in zip(files, stems, strict=True):
        key = name.split("/")[0] if nested else stem[1] if numbered and stem is not None else str(PurePosixPath(name))
        groups.setdefault(key, []).append(name)
    return groups


def _numbers(keys: Sequence[str], count: int) -> list[int]:
    """Positions of prompts that names such as 7 or 0007 mean, from 0 where one is 0, from 1 where one is the last."""
    stems = [PurePosixPath(key).stem for key in keys]
    if not all(stem.isdecimal() for stem in stems):
        raise ScoringError(f"names are neither prompt ids nor numbers, such as {keys[0]}; give a table and --match COLUMN")
    numbers = [int(stem) for stem in stems]
    counts = Counter(numbers)
    if len(counts) < len(numbers):
        twice = [key for key, number in zip(keys, numbers, strict=True) if counts[number] > 1]
        raise ScoringError(f"several images for one number: {some(twice)}")
    first = 0 if 0 in numbers else 1
    if first == 1 and count not in numbers:
        raise ScoringError(
            f"whether the names count from 0 or from 1 cannot be told: neither 0 nor {count} is among them;"
            " give prompts with these names as ids, or a table and --match COLUMN"
        )
    if max(numbers) - first >= count:
        raise ScoringError(f"image {keys[numbers.index(max(numbers))]} is beyond the {count} prompts")
    return [number - first for number in numbers]


def _checked(
    folder: Path, files: Sequence[str], source: PromptFile, pairs: Pairs, how: str, partial: bool, model: str
) -> Match:
    """The pairs as items, after refusing what has no partner."""
    prompts = source.prompts
    used, matched = {name for _, name in pairs}, {prompts[position].id for position, _ in pairs}
    strangers = [name for name in files if name not in used]
    missing = [identity for identity in dict.fromkeys(prompt.id for prompt in prompts) if identity not in matched]
    if not pairs:
        raise ScoringError(
            f"{folder}: no image belongs to a prompt; the first image is {files[0]}, the first id {prompts[0].id}"
        )
    if not partial and (strangers or missing):
        alone = "images whose name is no prompt id" if source.cells is None else "images that no row names"
        lists = ((alone, strangers), ("prompts without an image", missing))
        found = [f"{what}: {some(names)}" for what, names in lists if names]
        raise ScoringError("; ".join([*found, "--partial leaves them out"]))
    seen: Counter[str] = Counter()
    items = []
    for position, name in _in_order(pairs):
        prompt = prompts[position]
        seen[prompt.id] += 1
        items.append(Item(str(folder / name), name, prompt, seen[prompt.id], model))
    return Match(items, how, missing, strangers)


def _in_order(pairs: Iterable[tuple[int, str]]) -> Pairs:
    return sorted(pairs, key=lambda pair: (pair[0], natural(pair[1])))
