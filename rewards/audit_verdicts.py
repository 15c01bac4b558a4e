"""One line per reward from an audit's findings: what it sees, what it is blind to, how it is fooled.

The rules (shares are of the span, right picture minus blank one; an interval is the 95 % bootstrap one):

1. No score at all: says whether it does not apply or failed, and stops. One score for every picture: "constant", and stops.
2. The span's interval reaches down to 0: "does not tell a right picture from a blank one" (or "prefers a blank picture"), and
   what raises its score most. Shares have no meaning then, so nothing else is said.
3. Another prompt's picture costs less than LITTLE: "blind to the prompt"; rules 4 to 6 are left out.
4. Text: all letters wrong cost at least MOST: "reads what is there" (", all or nothing" if one wrong letter of four costs ALL
   of that, ", overlooks a wrong letter" if it costs less than LITTLE). Less than LITTLE: "blind to text". Between: the cost.
5. Colour: less than LITTLE: "blind to colour"; else the cost.
6. Spam: the larger share that it keeps is always said; repeated text and the smallest type only if they keep MOST.
7. The one thing that raises the score most, by at least LITTLE: "… buys …".
8. The quality perturbation whose mildest grade costs most, if that is FRAGILE or more: "fragile: …".

"Less than LITTLE" means the whole interval; a cost whose interval holds 0 and LITTLE is "undecided".
"""

from collections.abc import Callable, Iterator

import numpy as np

from xomni_rl.rewards.audit import Scores
from xomni_rl.rewards.audit_findings import Effect, Findings, Interval, is_constant
from xomni_rl.rewards.perturbations import CONTENT, QUALITY

LITTLE, MOST, ALL, FRAGILE = 0.1, 0.5, 0.9, 0.2


def verdicts(scores: Scores, findings: Findings) -> dict[str, str]:
    """Reward → its line."""
    return {name: verdict(scores, findings, name) for name in scores.names}


def verdict(scores: Scores, findings: Findings, reward: str) -> str:
    """What one reward is worth, in one line."""
    k = scores.names.index(reward)
    values = scores.values[k][np.isfinite(scores.values[k])]
    if not len(values):
        return _unscored(scores, k)
    if is_constant(values):
        return f"constant: {values[0]:.4g} for all {len(values)} pictures"
    span = findings.spans[reward]
    if not span.low > 0:
        return "; ".join(_without_span(findings, reward, span))
    other = cost(findings.effect(reward, "other_prompt"))
    if other is not None and other.high < LITTLE:
        phrases = ["blind to the prompt"]
    else:
        phrases = [*_what_it_sees(findings, reward, other), *_what_text_fools_it(findings, reward)]
    phrases += _what_fools_it(findings, reward)
    return "; ".join(phrases) or "nothing to remark"


def cost(effect: Effect | None) -> Interval | None:
    """What a perturbation takes from the span, as an interval; None if it is not known."""
    if effect is None or not effect.share.known or not np.isfinite(effect.share.low):
        return None
    return Interval(-effect.share.value, -effect.share.high, -effect.share.low)


def _unscored(scores: Scores, reward: int) -> str:
    failed, pictures = int(scores.failed[reward].sum()), int(scores.made.sum())
    if failed:
        reason = scores.reasons.get(scores.names[reward], "a component failed")
        return f"failed on {failed} of {pictures} pictures, and scored none: {reason}"
    return f"applies to none of the {pictures} pictures"


def _without_span(findings: Findings, reward: str, span: Interval) -> Iterator[str]:
    if not span.known:
        yield "has no score for right and blank pictures of the same prompt"
    elif span.high < 0:
        yield "prefers a blank picture to a right one"
    else:
        yield "does not tell a right picture from a blank one"
    best = _best(findings, reward, lambda effect: effect.change)
    if best is not None and best.change.low > 0:
        yield f"{_label(best)} raises the score by {best.change.value:.3g}"


def _what_it_sees(findings: Findings, reward: str, other: Interval | None) -> Iterator[str]:
    grades = findings.grades(reward, "wrong_text")
    if grades and (text := cost(grades[-1])) is not None:
        yield _reading(text, cost(grades[0]))
    elif other is not None:
        yield f"another prompt's picture costs {_percent(other.value)}" if other.low > 0 else "prompt: undecided, more samples"
    if (colour := cost(findings.effect(reward, "wrong_colour"))) is not None:
        yield _sight("colour", colour)


def _reading(text: Interval, letter: Interval | None) -> str:
    if text.value < MOST or text.low <= 0:
        return _sight("text", text)
    if letter is not None and letter.value >= ALL * text.value:
        return "reads what is there, all or nothing"
    if letter is not None and letter.high < LITTLE:
        return "reads what is there, overlooks a wrong letter"
    return "reads what is there"


def _sight(what: str, found: Interval) -> str:
    if found.high < LITTLE:
        return f"blind to {what}"
    return f"wrong {what} costs {_percent(found.value)}" if found.low > 0 else f"{what}: undecided, more samples"


def _what_text_fools_it(findings: Findings, reward: str) -> Iterator[str]:
    spam = [e.share.value for e in findings.grades(reward, "text_spam") if e.share.known]
    if spam:
        yield f"spam keeps {_percent(1 + max(spam))} of the score"
    repeated = [e.share.value for e in findings.grades(reward, "repeated_text") if e.share.known]
    if repeated and 1 + max(repeated) >= MOST:
        yield f"repeating the text keeps {_percent(1 + max(repeated))}"
    tiny = findings.grades(reward, "tiny_text")
    if tiny and 1 + tiny[-1].share.value >= MOST:
        yield f"{tiny[-1].variant.strength} keeps {_percent(1 + tiny[-1].share.value)}"


def _what_fools_it(findings: Findings, reward: str) -> Iterator[str]:
    best = _best(findings, reward, lambda effect: effect.share)
    if best is not None and best.share.value >= LITTLE and best.share.low > 0:
        yield f"{_label(best)} buys {_percent(best.share.value)}"
    mild = [(c.value, e) for e in _of_kind(findings, reward, QUALITY) if e.variant.grade == 1 and (c := cost(e)) and c.low > 0]
    if mild and (worst := max(mild, key=lambda each: each[0]))[0] >= FRAGILE:
        yield f"fragile: {worst[1].variant.name} ({worst[1].variant.strength}) costs {_percent(worst[0])}"


def _best(findings: Findings, reward: str, measure: Callable[[Effect], Interval]) -> Effect | None:
    """What raises the score most, of everything but pictures that are meant to be wrong."""
    known = [e for e in findings.effects if e.reward == reward and e.variant.kind != CONTENT and measure(e).known]
    return max(known, key=lambda effect: measure(effect).value, default=None)


def _of_kind(findings: Findings, reward: str, kind: str) -> list[Effect]:
    return [effect for effect in findings.effects if effect.reward == reward and effect.variant.kind == kind]


def _label(effect: Effect) -> str:
    on = " on a wrong picture" if effect.variant.base != "right" else ""
    return f"{effect.variant.name} ({effect.variant.strength}){on}"


def _percent(share: float) -> str:
    return f"{100 * share + 0.0:.0f} %"
