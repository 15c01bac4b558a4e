"""Training and held-out prompts of a source of rows: how they are told apart, cleaned and drawn."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from xomni_rl.prompt_sets.cleaning import Cleaning, Sieve, fingerprint, normal_text
from xomni_rl.prompt_sets.exclusion import excluded_fingerprints
from xomni_rl.prompts import Prompt, PromptError, Row

SPLITS = ("train", "heldout")
Choose = Callable[[Iterable[Prompt]], list[Prompt]]


@dataclass(frozen=True)
class Source:
    """Rows that are split by the hash of their texts, or beside held-out rows of their own.

    Args:
        name: of the rows, for messages.
        rows: gives the rows anew at each call.
        heldout_name: of the held-out rows.
        heldout_rows: gives the held-out rows; None = `rows` is split.
        heldout_share: share of texts that are held out of `rows`, in (0, 1]; 1 = all of them.
    Raises: ValueError for a share out of range.
    """

    name: str
    rows: Callable[[], Iterable[Row]]
    heldout_name: str = ""
    heldout_rows: Callable[[], Iterable[Row]] | None = None
    heldout_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.heldout_share <= 1:
            raise ValueError(f"heldout_share must be between 0 and 1, got {self.heldout_share}")


def check_split(split: str) -> None:
    """Raises: ValueError for anything but train and heldout."""
    if split not in SPLITS:
        raise ValueError(f"split must be train or heldout, got {split!r}")


def is_heldout(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out share; the same for all texts that count as repetitions of each other."""
    digest = hashlib.sha256(normal_text(text).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def drawn(count: int, seed: int) -> Choose:
    """Draws at most `count` prompts in an order that the seed and the texts make, however many there are.

    Rows are read once and no more than `count` prompts are kept; a row added or moved leaves the others in their order.
    """

    def order(prompt: Prompt) -> bytes:
        return hashlib.blake2b(f"{seed}\0{prompt.text}".encode(), digest_size=16).digest()

    return lambda prompts: heapq.nsmallest(count, prompts, key=order)


def read_split(source: Source, split: str, cleaning: Cleaning, choose: Choose) -> list[Prompt]:
    """One split of a source, cleaned, and then what `choose` takes of it.

    Raises: PromptError for a bad row, an empty split, or a training prompt that the held-out rows have too; ValueError for
        another split.
    """
    check_split(split)
    excluded = excluded_fingerprints(cleaning.exclude) if split == "train" else set()
    if source.heldout_rows is None:
        name, sieve = source.name, Sieve(cleaning, excluded)
        read = _of_split(sieve.of_rows(source.rows()), source.heldout_share, split)
    elif split == "train":
        heldout = {fingerprint(prompt.text) for prompt in Sieve(cleaning).of_rows(source.heldout_rows())}
        name, sieve = source.name, Sieve(cleaning, excluded | heldout)
        read = sieve.of_rows(source.rows())
        read = read if "heldout" in cleaning.exclude else _refusing(read, heldout, source)
    else:
        name, sieve = source.heldout_name, Sieve(cleaning)
        training_ids = {prompt.id for prompt in Sieve(replace(cleaning, malformed="skip")).of_rows(source.rows())}
        read = _with_own_ids(sieve.of_rows(source.heldout_rows()), training_ids)
    prompts = choose(sieve.kept(read))
    sieve.report(name, split, len(prompts), "change the file, heldout_share or what is left out")
    return prompts


def _of_split(prompts: Iterable[Prompt], heldout_share: float, split: str) -> Iterator[Prompt]:
    return (prompt for prompt in prompts if is_heldout(prompt.text, heldout_share) == (split == "heldout"))


def _refusing(prompts: Iterable[Prompt], heldout: set[bytes], source: Source) -> Iterator[Prompt]:
    for prompt in prompts:
        if fingerprint(prompt.text) in heldout:
            raise PromptError(
                f'{source.name}: the text of prompt "{prompt.id}" is in {source.heldout_name} too: "{prompt.text}"; leave '
                "such prompts out of training with prompts.options.exclude=[heldout]"
            )
        yield prompt


def _with_own_ids(prompts: Iterable[Prompt], taken: set[str]) -> Iterator[Prompt]:
    """Held-out prompts; with a prefix if any of their ids is one of training's, because ids seed random streams."""
    kept = list(prompts)
    prefix = "heldout-" if any(prompt.id in taken for prompt in kept) else ""
    return (replace(prompt, id=prefix + prompt.id) if prefix else prompt for prompt in kept)
