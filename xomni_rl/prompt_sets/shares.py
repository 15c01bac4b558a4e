"""Whole numbers in given proportions."""

import math
from collections.abc import Mapping
from fractions import Fraction


def whole_shares(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` divided in proportion to the weights: each gets its exact share rounded down, the largest remainders one more.

    Of equal remainders the first in order wins. Every number is less than 1 away from the exact share.

    >>> whole_shares({"text": 2, "photo": 1}, 10)
    {'text': 7, 'photo': 3}

    Raises: ValueError for a weight that is no finite number from 0, if all are 0, or for a negative total.
    """
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f'the weight of "{name}" must be a number from 0, got {weight!r}')
    whole = sum(Fraction(weight) for weight in weights.values())
    if not whole or total < 0:
        raise ValueError(f"shares need a weight above 0 and a total from 0, got {dict(weights)} and {total}")
    exact = {name: Fraction(weight) * total / whole for name, weight in weights.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares
