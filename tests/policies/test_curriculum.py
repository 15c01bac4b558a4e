"""Prompts by pass rate: the average, the weights, the draw, and the way through a checkpoint."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.policies.curriculum import PassRate, PassRates
from xomni_rl.prompts import Prompt

NAN = np.nan


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{index}", text=f"sign {index}") for index in range(count)]


def known(*scores: float) -> PassRates:
    """A state in which prompt p0 has the first score, and so on."""
    return PassRates({f"p{index}": PassRate(score, 1) for index, score in enumerate(scores)})


# update


def test_first_sight_is_the_mean_and_later_ones_are_averaged_in():
    # a: mean of 0 and 1 = 0.5; then memory 0.75: 0.75·0.5 + 0.25·1 = 0.625.  b is seen later: 0.25
    first = PassRates().update(["a", "a"], floats(0, 1))
    assert first.rates == {"a": PassRate(0.5, 1)}
    second = first.update(["a", "b"], floats(1, 0.25), memory=0.75)
    assert second.rates == {"a": PassRate(0.625, 2), "b": PassRate(0.25, 1)}


def test_update_leaves_the_state_before_as_it_was():
    before = PassRates().update(["a"], floats(0.5))
    before.update(["a", "b"], floats(1, 1))
    assert before.rates == {"a": PassRate(0.5, 1)}


def test_rollouts_without_score_are_left_out_and_prompts_without_any_are_as_before():
    # a: 1 alone;  b: nothing, so not seen;  c: nothing, as before
    state = PassRates({"c": PassRate(0.25, 3)}).update(["a", "a", "b", "c"], floats(1, NAN, NAN, NAN))
    assert state.rates == {"a": PassRate(1.0, 1), "c": PassRate(0.25, 3)}


def test_threshold_makes_every_score_a_pass_or_not():
    # 0.9 reaches 0.9 though float32 0.9 is below it: 1 of 2;  scores beyond [0, 1] will do
    assert PassRates().update(["a", "a"], floats(0.9, 0.8), threshold=0.9).rates["a"].score == 0.5
    assert PassRates().update(["a", "a"], floats(-3, 27), threshold=5.0).rates["a"].score == 0.5


def test_bad_updates_raise():
    with pytest.raises(ValueError, match=r"scores must be in \[0, 1\], but one is 27.*threshold"):
        PassRates().update(["a", "a"], floats(0.5, 27))
    with pytest.raises(ValueError, match="scores must have one id each"):
        PassRates().update(["a"], floats(0.5, 0.5))
    with pytest.raises(ValueError, match="scores must hold float values"):
        PassRates().update(["a"], np.array([1]))
    with pytest.raises(ValueError, match="memory must be at most 1"):
        PassRates().update(["a"], floats(0.5), memory=2.0)


# sampling_weights


def test_weights_match_hand_values():
    # 0.5: 0.05 + 4·0.25 = 1.05;  0.25: 0.05 + 4·3/16 = 0.8;  1 and 0.95: outside [0.1, 0.9];  p4 not seen: prior 0.5
    got = known(0.5, 0.25, 1.0, 0.95).sampling_weights(prompts(5))
    np.testing.assert_allclose(got, [1.05, 0.8, 0.05, 0.05, 1.05])


def test_band_includes_its_ends_and_prior_may_lie_outside():
    # 0.25 and 0.75 are the ends: 0.1 + 0.75;  0.8 is outside;  prior 0 too
    got = known(0.25, 0.75, 0.8).sampling_weights(prompts(4), low=0.25, high=0.75, floor=0.1, prior=0.0)
    np.testing.assert_allclose(got, [0.85, 0.85, 0.1, 0.1])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"low": 0.8, "high": 0.2}, "low must be at most high"),
        ({"low": -0.1}, "low must be 0 or more"),
        ({"high": 1.1}, "high must be at most 1"),
        ({"prior": NAN}, "prior must be 0 or more"),
        ({"floor": 0.0}, "floor must be above 0"),
        ({"floor": -1.0}, "floor must be 0 or more"),
    ],
)
def test_bad_knobs_raise(knobs, message):
    with pytest.raises(ValueError, match=message):
        PassRates().choose(prompts(3), 1, 1, 0, **knobs)


# choose


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), max_size=12), st.integers(1, 12), st.integers(1, 10**6), st.integers(0, 2**31))
def test_choice_is_of_different_prompts_and_repeats_itself(scores, per_step, step, seed):
    state = known(*scores)
    chosen = state.choose(prompts(12), per_step, step, seed)
    assert len({prompt.id for prompt in chosen}) == per_step
    assert chosen == known(*scores).choose(prompts(12), per_step, step, seed)


def test_another_step_seed_or_state_chooses_otherwise():
    everything, state = prompts(50), known(*[0.5] * 25, *[1.0] * 25)
    chosen = state.choose(everything, 10, 1, 0)
    assert chosen != state.choose(everything, 10, 2, 0)
    assert chosen != state.choose(everything, 10, 1, 1)
    assert chosen != PassRates().choose(everything, 10, 1, 0)


def test_prompts_are_drawn_as_often_as_their_weights_say():
    # weights 1.05, 0.8, 0.05: shares of 8,000 draws of one prompt, each off by at most 5 deviations √(s(1-s)/8000)
    state, weights = known(0.5, 0.25, 1.0), np.array([1.05, 0.8, 0.05])
    drawn = [state.choose(prompts(3), 1, step, 7)[0].id for step in range(1, 8_001)]
    for index, share in enumerate(weights / weights.sum()):
        assert drawn.count(f"p{index}") / 8_000 == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 8_000))


def test_second_prompt_is_drawn_by_weight_among_the_rest():
    # without replacement: P(p2 is left out of two) = Σ over orders of the others
    # w = 1, 2, 1 of 4 (scaled): P(0 then 1) = 1/4·2/3 = 1/6, P(1 then 0) = 1/2·1/2 = 1/4 → 5/12
    # 4p(1-p) + floor = 0.5, 1, 0.5 with floor 0.1: p(1-p) = 0.1 and 0.225
    low, high = (1 - math.sqrt(1 - 0.4)) / 2, (1 - math.sqrt(1 - 0.9)) / 2
    state = known(low, high, low)
    np.testing.assert_allclose(state.sampling_weights(prompts(3), low=0.0, high=1.0, floor=0.1), [0.5, 1.0, 0.5])
    left_out = 0
    for step in range(1, 8_001):
        chosen = state.choose(prompts(3), 2, step, 3, low=0.0, high=1.0, floor=0.1)
        left_out += all(prompt.id != "p2" for prompt in chosen)
    assert left_out / 8_000 == pytest.approx(5 / 12, abs=5 * math.sqrt(5 / 12 * 7 / 12 / 8_000))


def test_too_few_prompts_raise():
    with pytest.raises(ValueError, match="per_step must be at most the number of prompts, but is 4 of 3"):
        PassRates().choose(prompts(3), 4, 1, 0)
    with pytest.raises(ValueError, match="per_step must be a whole number of 1 or more"):
        PassRates().choose(prompts(3), 0, 1, 0)


def test_prompts_that_are_learnt_give_way_to_those_that_are_not():
    # a world where half of the prompts are always right from the start: after 50 steps they are rarely drawn
    everything, state, late = prompts(40), PassRates(), []
    for step in range(1, 101):
        chosen = [prompt.id for prompt in state.choose(everything, 8, step, 0)]
        scores = np.array([1.0 if int(name[1:]) < 20 else 0.5 for name in chosen], np.float32)
        state = state.update(chosen, scores)
        late += chosen if step > 50 else []
    # weights 0.05 and 1.05, eight of 40: well under a tenth of the draws, where chance gives half
    assert 0 < sum(int(name[1:]) < 20 for name in late) / len(late) < 0.15


# through a checkpoint


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.tuples(st.floats(0, 1), st.integers(1, 2**53))))
def test_state_comes_back_from_json_bit_for_bit(entries):
    state = PassRates({name: PassRate(score, count) for name, (score, count) in entries.items()})
    assert PassRates.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_run_goes_on_from_json_as_if_it_had_not_stopped():
    everything, draw = prompts(30), np.random.default_rng(0)
    whole = resumed = PassRates()
    for step in range(1, 21):
        chosen = whole.choose(everything, 6, step, 5)
        assert resumed.choose(everything, 6, step, 5) == chosen
        scores = draw.random(6, dtype=np.float32)
        whole = whole.update([prompt.id for prompt in chosen], scores)
        resumed = resumed.update([prompt.id for prompt in chosen], scores)
        resumed = PassRates.from_json(json.loads(json.dumps(resumed.to_json())))
    assert whole == resumed


@pytest.mark.parametrize("entry", [[0.5], [2.0, 1], [0.5, 0], [0.5, 1.5], "ab", None, ["0.5", 1]])
def test_damaged_state_names_the_prompt(entry):
    with pytest.raises(ValueError, match='pass rate of "p7" must be'):
        PassRates.from_json({"p7": entry})
