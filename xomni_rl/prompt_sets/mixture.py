"""Several prompt sets in given proportions, free of repetitions among them and of each other's held-out prompts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xomni_rl.prompt_sets.cleaning import Cleaning, EmptySplitError, PromptWarning, Sieve, fingerprint
from xomni_rl.prompt_sets.exclusion import MOST_PROMPTS, excluded_fingerprints
from xomni_rl.prompt_sets.shares import whole_shares
from xomni_rl.prompt_sets.splitting import check_split
from xomni_rl.prompts import Prompt, PromptError, prompt_sets
from xomni_rl.registry import unknown_name

SOURCE_KEYS = ("set", "weight", "options")
MOST_ASKED = 16
"""A source is asked for up to this many times its share to make up for prompts that are left out."""


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Args:
        name: begins the ids of its prompts.
        set: the prompt set.
        weight: its share is weight / sum of all weights.
        options: of the prompt set.
    Raises: ValueError for a name with other characters than letters, digits and underscores, or the name heldout.
    """

    name: str
    set: str
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The first "-" of an id ends the name, so that ids of two sources never meet.
        if not self.name.replace("_", "a").isalnum() or self.name == "heldout":
            raise ValueError(f'a source is named by letters, digits and underscores, and not heldout, got "{self.name}"')

    def prompts(self, split: str, count: int, seed: int) -> list[Prompt]:
        """At most `count` prompts with the mixture's ids. Raises: PromptError that names the source; ValueError."""
        own_seed = int.from_bytes(hashlib.blake2b(f"{seed}\0{self.name}".encode(), digest_size=4).digest(), "big")
        try:
            found = prompt_sets.get(self.set)(split=split, count=count, seed=own_seed, **dict(self.options))
        except PromptError as error:
            raise type(error)(f'source "{self.name}" of the mixture: {error}') from error
        return [replace(p, id=f"{self.name}-{p.id}", metadata={**p.metadata, "source": self.name}) for p in found]


@prompt_sets.register("mixture")
def mixture(
    split: str,
    count: int,
    seed: int,
    sources: Mapping[str, Any] | None = None,
    heldout_sources: Mapping[str, Any] | None = None,
    **cleaning: Any,
) -> list[Prompt]:
    """Several prompt sets by weight: exact whole shares, spread evenly over the list, no source's held-out prompts in training.

    A source with too few prompts for its share is gone through again in training; held-out prompts are never repeated, and
    the whole list becomes shorter instead, so that the shares hold.

    Args:
        split: "train" or "heldout".
        count: how many prompts; shares are rounded by the largest remainder.
        seed: which ones, and their order.
        sources: name → {set: (the name), weight: 1, options: {}}. The name begins the ids and is metadata's "source".
        heldout_sources: the same for the held-out prompts, such as benchmarks; None = the held-out splits of `sources`.
        cleaning: options of `Cleaning` for all of them; `malformed` belongs to the options of a source.
    Raises: PromptError for a source without prompts; ValueError for bad options.
    """
    check_split(split)
    if not sources:
        raise ValueError('prompt set "mixture" needs sources, for example {text: {set: text_rendering, weight: 2}, signs: {}}')
    if "malformed" in cleaning:
        raise ValueError("malformed belongs to the options of a source: prompts.options.sources.NAME.options.malformed=skip")
    kept = Cleaning.from_options("mixture", cleaning, ("sources", "heldout_sources"))
    heldout = parts_of("heldout_sources", heldout_sources) if heldout_sources else parts_of("sources", sources)
    if split == "heldout":
        prompts = _mixed(heldout, split, count, seed, Sieve(kept))
        return [replace(p, id=f"heldout-{p.id}") for p in prompts] if heldout_sources else prompts
    excluded = excluded_fingerprints(kept.exclude).union(*map(_heldout_fingerprints, heldout))
    return _mixed(parts_of("sources", sources), split, count, seed, Sieve(kept, excluded))


def _heldout_fingerprints(part: Part) -> set[bytes]:
    try:
        return {fingerprint(prompt.text) for prompt in part.prompts("heldout", MOST_PROMPTS, seed=0) if part.weight}
    except EmptySplitError:
        return set()


def parts_of(option: str, sources: Mapping[str, Any]) -> list[Part]:
    """The sources as they are written. Raises: ValueError for a bad one."""
    parts = []
    for name, entry in sources.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"{option}.{name} must be {{set: NAME, weight: NUMBER, options: {{…}}}}, got {entry!r}")
        for key in entry:
            if key not in SOURCE_KEYS:
                raise ValueError(unknown_name(f"key of {option}.{name}:", str(key), SOURCE_KEYS))
        parts.append(Part(str(name), str(entry.get("set", name)), entry.get("weight", 1.0), dict(entry.get("options") or {})))
    whole_shares({part.name: part.weight for part in parts}, 0)  # raises for bad weights
    return parts


def _mixed(parts: list[Part], split: str, count: int, seed: int, sieve: Sieve) -> list[Prompt]:
    weights = {part.name: part.weight for part in parts}
    shares = whole_shares(weights, count)
    found = {part.name: _gathered(part, split, shares[part.name], seed, sieve) for part in parts if shares[part.name]}
    short = {name: len(prompts) for name, prompts in found.items() if len(prompts) < shares[name]}
    if split == "heldout":
        shares = _fitting(weights, {name: len(found.get(name, ())) for name in weights}, count)
    if short:
        counts = ", ".join(f"{name} has {number}" for name, number in short.items())
        instead = "gone through again" if split == "train" else f"the split has {sum(shares.values())} prompts, not {count}"
        warnings.warn(f"mixture, {split}: fewer prompts than their share: {counts}; {instead}", PromptWarning, stacklevel=2)
    if sum(shares.values()):
        sieve.report("mixture", split, sum(shares.values()), "")
    return _spread({name: _repeated(found[name], share) for name, share in shares.items() if share}, seed)


def _gathered(part: Part, split: str, share: int, seed: int, sieve: Sieve) -> list[Prompt]:
    """Up to `share` prompts of a source that the sieve lets through, asking for more while some are left out.

    Raises: PromptError if there is none.
    """
    asked = share
    while True:
        offered = part.prompts(split, asked, seed)
        attempt = Sieve(sieve.cleaning, sieve.excluded, set(sieve.seen))
        kept = list(attempt.kept(offered))
        if len(kept) >= share or len(offered) < asked or asked >= MOST_ASKED * share:
            break
        asked *= 2
    sieve.left_out += attempt.left_out
    sieve.seen |= {fingerprint(prompt.text) for prompt in kept[:share]}
    if not kept:
        why = attempt.account()
        raise PromptError(
            f'source "{part.name}" of the mixture has no prompt for the split {split} ({why}); change its options'
        )
    return kept[:share]


def _fitting(weights: Mapping[str, float], there: Mapping[str, int], most: int) -> dict[str, int]:
    """The shares of the largest total up to `most` for which every source has enough prompts."""
    for total in range(most, 0, -1):
        shares = whole_shares(weights, total)
        if all(share <= there[name] for name, share in shares.items()):
            return shares
    return dict.fromkeys(weights, 0)


def _repeated(prompts: list[Prompt], share: int) -> list[Prompt]:
    """`share` prompts, going round; from the second round on ids end in -again1, -again2, …"""
    rounds = [divmod(position, len(prompts)) for position in range(share)]
    return [replace(prompts[i], id=f"{prompts[i].id}-again{again}") if again else prompts[i] for again, i in rounds]


def _spread(prompts: Mapping[str, list[Prompt]], seed: int) -> list[Prompt]:
    """All prompts, each source's evenly over the whole list and in its order, so that every batch has about its share."""
    rng = np.random.default_rng(seed)
    places = [(np.arange(len(each)) + rng.random(len(each))) / len(each) for each in prompts.values()]
    everything = [prompt for each in prompts.values() for prompt in each]
    return [everything[index] for index in np.argsort(np.concatenate(places), kind="stable")] if everything else []
