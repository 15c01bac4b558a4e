"""Best of N: the image kept is the best one, and what it is worth on average equals counting all subsets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xomni_rl.envs.rollout import rollout
from xomni_rl.policies.best_of_n import best_images, expected_best
from xomni_rl.prompts import Prompt
from xomni_rl.rewards.composite import build_composite
from xomni_rl.stack.stack import Stack


def test_kept_image_is_the_one_the_reward_likes_best() -> None:
    stack, reward = Stack.tiny_random(seed=0), build_composite({"components": {"contrast": {"reward": "contrast"}}})
    prompts = [Prompt(f"p{i}", f"sign {i}", size=(16, 32)) for i in range(2)]
    found = best_images(stack, prompts, reward, 4, seed=3)
    batch = rollout(stack, prompts, reward, group_size=4, seed=3)
    np.testing.assert_array_equal(found.scores, batch.rewards.scores.reshape(2, 4))
    for row, image in enumerate(found.images):
        np.testing.assert_array_equal(image, batch.images[row * 4 + int(found.scores[row].argmax())])
        assert found.scores[row, found.best[row]] == found.scores[row].max()


def test_best_of_two_of_three_is_worked_out_by_hand() -> None:
    # one prompt, scores 3, 1, 2, values 10, 20, 60: of the pairs {3,1}, {3,2}, {1,2} the best have values 10, 10, 60
    found = expected_best(np.array([[3.0, 1.0, 2.0]]), np.array([[10.0, 20.0, 60.0]]))
    np.testing.assert_allclose(found, [30.0, 80 / 3, 10.0], atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 10_000))
def test_expectation_equals_the_mean_over_all_subsets(prompts: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, values = rng.integers(0, 4, (prompts, count)).astype(float), rng.normal(size=(prompts, count))
    expected = [
        np.mean([[row[max(subset, key=lambda i: (by[i], -i))] for subset in itertools.combinations(range(count), k)]
                 for by, row in zip(scores, values, strict=True)])
        for k in range(1, count + 1)
    ]  # fmt: skip
    np.testing.assert_allclose(expected_best(scores, values), expected, atol=1e-12)


def test_best_of_n_by_its_own_score_never_falls() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 8))
    assert (np.diff(expected_best(scores, scores)) >= -1e-12).all()


def test_number_that_is_not_finite_raises() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        expected_best(np.array([[1.0, np.nan]]), np.zeros((1, 2)))
