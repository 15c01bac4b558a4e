"""What every algorithm promises, which options it refuses, and adding one from outside in one file."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from xomni_rl.cli import app
from xomni_rl.policies.advantages import combine_rewards
from xomni_rl.policies.algorithms.base import (
    COMMON_OPTIONS,
    Algorithm,
    AlgorithmError,
    Reference,
    algorithms,
    build_algorithm,
)
from xomni_rl.policies.filters import FILTERS, drop_zero_variance, keep_all
from xomni_rl.policies.losses import policy_loss
from xomni_rl.policies.losses.surrogates import reinforce
from xomni_rl.registry import UnknownNameError
from xomni_rl.stack.stack import Stack

NAMES = algorithms.names()
SHARING = [name for name in NAMES if "common" in inspect.signature(algorithms.get(name)).parameters]
"""Those that take the options of `policy_gradient`."""
WEIGHTS = np.array([1.0, 0.5], np.float32)
GROUP = np.repeat([3, 8], 6)

OUTSIDE = '''"""An algorithm of somebody's own: the reward itself, less a constant, is the advantage."""
from xomni_rl.policies.advantages import combine_rewards
from xomni_rl.policies.algorithms.base import policy_gradient


def constant_baseline(*, baseline=0.5, **common):
    """REINFORCE with a constant baseline."""
    from xomni_rl.policies.losses.surrogates import reinforce

    def advantage(rewards, weights, group):
        return combine_rewards(rewards, weights) - baseline

    return policy_gradient("constant_baseline", advantage, reinforce, **common)


def not_an_algorithm():
    return 3
'''


def scored() -> np.ndarray:
    """Rewards [12, 2] of two groups of six, the best being 1; rollout 4 has none, and of 7 the first does not apply."""
    rewards = np.random.default_rng(0).random((12, 2)).astype(np.float32)
    rewards[[1, 9]] = 1.0
    rewards[4] = np.nan
    rewards[7, 0] = np.nan
    return rewards


def known(algorithm: Algorithm, tokens: int = 3) -> dict[str, np.ndarray]:
    """What the advantage is given besides, and nothing that it did not ask for."""
    draw = np.random.default_rng(1)
    everything = {"greedy": draw.random((12, 2)).astype(np.float32), "values": draw.random((12, tokens)).astype(np.float32)}
    return {need: values for need, values in everything.items() if need in algorithm.needs}


def loss_of(algorithm: Algorithm, keep: np.ndarray, advantages: np.ndarray, **changed: Tensor) -> tuple[Any, Tensor]:
    """(loss, metrics) on the kept rollouts, three tokens each, the last of the second one masked; log-probabilities."""
    draw = torch.Generator().manual_seed(2)
    old = -torch.rand(12, 3, generator=draw) - 0.1
    logprobs = (old + 0.3 * torch.randn(12, 3, generator=draw))[keep].requires_grad_()
    mask = torch.ones(int(keep.sum()), 3, dtype=torch.bool)
    mask[1, 2] = False
    inputs = {"logprobs": logprobs, "old_logprobs": old[keep], "advantages": torch.from_numpy(advantages)[keep], "mask": mask}
    inputs["reference"] = (old - 0.2)[keep] if algorithm.reference is not None else None
    extras = {"entropy": -logprobs.exp() * logprobs, "sampler_logprobs": old[keep] + 0.01}
    extras["group"] = torch.from_numpy(GROUP)[keep]
    inputs |= {need: values for need, values in extras.items() if need in algorithm.needs}
    return algorithm.loss(**(inputs | changed)), logprobs


@pytest.mark.parametrize("name", NAMES)
def test_advantage_is_one_float_per_rollout_or_token_and_nan_without_a_reward(name: str) -> None:
    algorithm = build_algorithm(name)
    advantages = algorithm.advantage(scored(), WEIGHTS, GROUP, **known(algorithm))
    assert algorithm.name == name
    assert advantages.dtype == np.float32
    assert advantages.shape == ((12, 3) if "values" in algorithm.needs else (12,))
    missing = np.isnan(advantages.reshape(12, -1))
    assert missing[4].all()
    assert not np.delete(missing, 4, axis=0).any()


@pytest.mark.parametrize("name", NAMES)
def test_filter_is_one_bool_per_rollout_and_false_without_a_reward(name: str) -> None:
    keep = build_algorithm(name).filter(scored(), WEIGHTS, GROUP)
    assert keep.shape == (12,)
    assert keep.dtype == np.bool_
    assert not keep[4]
    assert keep.any()


def test_returns_are_one_float_per_token_and_only_with_a_critic() -> None:
    made = [build_algorithm(name) for name in NAMES]
    assert [algorithm.name for algorithm in made if algorithm.returns is not None] == ["ppo"]
    [ppo] = [algorithm for algorithm in made if algorithm.name == "ppo"]
    returns = ppo.returns(scored(), WEIGHTS, GROUP, **known(ppo))  # type: ignore[misc]
    assert (returns.shape, returns.dtype) == ((12, 3), np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_loss_runs_on_what_it_needs_and_hands_out_detached_numbers(name: str) -> None:
    algorithm = build_algorithm(name)
    keep = algorithm.filter(scored(), WEIGHTS, GROUP)
    (loss, metrics), logprobs = loss_of(algorithm, keep, algorithm.advantage(scored(), WEIGHTS, GROUP, **known(algorithm)))
    assert loss.shape == ()
    assert {"approx_kl", "ratio_max_deviation"} <= metrics.keys()
    for value in metrics.values():
        assert value.shape == ()
        assert not value.requires_grad
        assert torch.isfinite(value)
    loss.backward()
    assert torch.isfinite(logprobs.grad).all()
    assert logprobs.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_masked_token_may_hold_anything(name: str) -> None:
    algorithm = build_algorithm(name)
    keep = algorithm.filter(scored(), WEIGHTS, GROUP)
    advantages = algorithm.advantage(scored(), WEIGHTS, GROUP, **known(algorithm))
    (loss, metrics), logprobs = loss_of(algorithm, keep, advantages)
    loss.backward()
    junk = logprobs.detach().clone()
    junk[1, 2] = torch.nan
    junk.requires_grad_()
    (again, others), _ = loss_of(algorithm, keep, advantages, logprobs=junk)
    again.backward()
    assert again == loss
    assert others == metrics
    torch.testing.assert_close(junk.grad, logprobs.grad, rtol=0, atol=0)
    assert junk.grad[1, 2] == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_has_one_source_and_a_line_to_list(name: str) -> None:
    factory = algorithms.get(name)
    assert (inspect.getmodule(factory).__doc__ or "").count("\nSource: ") == 1  # type: ignore[union-attr]
    assert (factory.__doc__ or "").partition("\n")[0].endswith(".")


@pytest.mark.parametrize("name", SHARING)
def test_kl_goes_where_it_is_asked_to(name: str) -> None:
    nowhere = build_algorithm(name)
    in_loss = build_algorithm(name, {"kl_coef": 0.2, "kl_in": "loss", "kl_estimator": "k3"})
    in_reward = build_algorithm(name, {"kl_coef": 0.2, "kl_in": "reward", "kl_estimator": "k1"})
    assert [each.reference for each in (nowhere, in_loss, in_reward)] == [None, Reference("frozen"), Reference("frozen")]
    assert [each.kl_in_reward for each in (nowhere, in_loss, in_reward)] == [0.0, 0.0, 0.2]
    assert in_reward.kl_estimator == "k1"
    keep = nowhere.filter(scored(), WEIGHTS, GROUP)
    advantages = nowhere.advantage(scored(), WEIGHTS, GROUP, **known(nowhere))
    plain, paid, apart = (loss_of(each, keep, advantages)[0][0] for each in (nowhere, in_loss, in_reward))
    assert paid > plain  # k3 is never negative
    assert apart == plain


@pytest.mark.parametrize("name", SHARING)
def test_entropy_and_correction_make_an_algorithm_ask_for_them(name: str) -> None:
    own = build_algorithm(name).needs
    assert build_algorithm(name, {"entropy_coef": 0.01}).needs == own | {"entropy"}
    both = build_algorithm(name, {"entropy_coef": 0.01, "correction": "truncated", "correction_cap": 1.5})
    assert both.needs == own | {"entropy", "sampler_logprobs"}
    keep = both.filter(scored(), WEIGHTS, GROUP)
    (_, metrics), _ = loss_of(both, keep, both.advantage(scored(), WEIGHTS, GROUP, **known(both)))
    assert {"entropy", "sampler_kl", "correction_share"} <= metrics.keys()


@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("filter", FILTERS)
def test_every_filter_suits_every_algorithm_that_shares_options(name: str, filter: str) -> None:
    algorithm = build_algorithm(name, {"filter": filter})
    np.testing.assert_array_equal(algorithm.filter(scored(), WEIGHTS, GROUP), FILTERS[filter](scored(), WEIGHTS, GROUP))


def test_filter_takes_its_options() -> None:
    algorithm = build_algorithm("rloo", {"filter": "best_worst", "filter_options": {"keep": 1}})
    rewards = np.array([[0.0], [0.4], [0.6], [1.0]], np.float32)
    keep = algorithm.filter(rewards, WEIGHTS[:1], np.zeros(4, int))
    assert keep.tolist() == [True, False, False, True]
    assert build_algorithm("rloo").filter is keep_all
    assert build_algorithm("rloo", {"filter": "drop_zero_variance"}).filter is drop_zero_variance


def test_kept_rollouts_are_compared_among_themselves_if_asked() -> None:
    options = {"filter": "best_worst", "filter_options": {"keep": 1}}
    rewards, group = np.array([[0.0], [0.9], [0.9], [1.0]], np.float32), np.zeros(4, int)
    among_all = build_algorithm("rloo", options).advantage(rewards, WEIGHTS[:1], group)
    among_kept = build_algorithm("rloo", options | {"compare_kept": True}).advantage(rewards, WEIGHTS[:1], group)
    # against the mean of the other three: 0 - 2.8/3, 1 - 1.8/3;  against the one other that is kept: 0 - 1, 1 - 0
    np.testing.assert_allclose(among_all[[0, 3]], [-2.8 / 3, 1 - 0.6], atol=1e-6)
    np.testing.assert_allclose(among_kept, [-1, np.nan, np.nan, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"reference": "ema", "reference_decay": 0.9}, Reference("ema", 0.9, 100)),
        ({"reference": "reset", "reference_every": 5}, Reference("reset", 0.99, 5)),
    ],
)
def test_reference_is_as_asked_for_and_absent_where_it_costs_nothing(options: dict[str, Any], reference: Reference) -> None:
    assert build_algorithm("grpo", options | {"kl_coef": 0.1}).reference == reference
    assert build_algorithm("grpo", options).reference is None
    assert build_algorithm("dpo", options).reference == reference


def test_unknown_algorithm_gets_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match='unknown algorithm "grop"; nearest: grpo'):
        build_algorithm("grop")


BAD = [
    ("grpo", {"clip_hgh": 0.2}, 'unknown option of algorithm grpo, "clip_hgh"; nearest: clip_high'),
    ("grpo", {"scale": "sdt"}, 'unknown value of algorithm.options.scale, "sdt"; nearest: std'),
    ("grpo", {"kl_in": "rewrad"}, 'unknown value of algorithm.options.kl_in, "rewrad"; nearest: reward'),
    ("grpo", {"aggregation": "mean"}, 'unknown value of algorithm.options.aggregation, "mean"; nearest: token_mean'),
    ("grpo", {"filter": "none"}, 'unknown value of algorithm.options.filter, "none"'),
    ("grpo", {"kl_coef": float("nan")}, "algorithm.options.kl_coef must be a number of 0 or more, but is nan"),
    ("grpo", {"kl_coef": "little"}, "algorithm.options.kl_coef must be a number, but is 'little'"),
    ("grpo", {"clip_low": "a bit"}, "algorithm.options.clip_low must be a number, but is 'a bit'"),
    ("grpo", {"clip_low": 1.5}, "algorithm.options.clip_low must be in [0, 1], but is 1.5"),
    ("grpo", {"dual_clip": "x"}, "algorithm.options.dual_clip must be a number, but is 'x'"),
    ("grpo", {"reference_every": 2.5}, "algorithm.options.reference_every must be a whole number, but is 2.5"),
    ("sapo", {"temperature_positive": 0}, "algorithm.options.temperature_positive must be more than 0, but is 0"),
    ("clip_cov", {"fraction": 2}, "algorithm.options.fraction must be more than 0 and at most 1, but is 2"),
    ("ppo", {"lam": 2}, "algorithm.options.lam must be at most 1, but is 2"),
    ("pass_at_k", {"k": 1.5}, "algorithm.options.k must be a whole number, but is 1.5"),
    ("pass_at_k", {"threshold": float("inf")}, "algorithm.options.threshold must be finite, but is inf"),
    ("grpo", {"kl_estimator": "k4"}, 'unknown value of algorithm.options.kl_estimator, "k4"; known: k1, k2, k3'),
    ("grpo", {"reference": "emma"}, 'unknown value of algorithm.options.reference, "emma"; nearest: ema'),
    ("grpo", {"reference_decay": 1.5}, "algorithm.options.reference_decay must be at most 1, but is 1.5"),
    ("grpo", {"reference_every": 0}, "algorithm.options.reference_every must be a number of 1 or more, but is 0"),
    ("grpo", {"correction": "truncate"}, 'unknown value of algorithm.options.correction, "truncate"; nearest: truncated'),
    ("grpo", {"correction_cap": 0.5}, "algorithm.options.correction_cap must be a number of 1 or more, but is 0.5"),
    ("dapo", {"resample_rounds": -1}, "algorithm.options.resample_rounds must be a number of 0 or more, but is -1"),
    ("dr_grpo", {"scale": "std"}, 'unknown option of algorithm dr_grpo, "scale"'),  # it fixes it
    ("rloo", {"kl_cof": 0.1}, 'unknown option of algorithm rloo, "kl_cof"; nearest: kl_coef'),  # of the shared ones
    ("rloo", {"surrogate": "cliped"}, 'unknown value of algorithm.options.surrogate, "cliped"; nearest: clipped'),
    ("reinforce_pp", {"baseline": "grup"}, 'unknown value of algorithm.options.baseline, "grup"; nearest: group'),
    ("pass_at_k", {"k": 0}, "algorithm.options.k must be a number of 1 or more, but is 0"),
    ("dpo", {"beta": 0}, "algorithm.options.beta must be above 0, but is 0"),
    ("dpo", {"kl_coef": 0.1}, 'unknown option of algorithm dpo, "kl_coef"'),
    ("opo", {"filter": "best_worst", "filter_options": {"kep": 1}}, 'option of filter best_worst, "kep"; nearest: keep'),
    (
        "opo",
        {"filter": "best_worst", "filter_options": {"keep": 0}},
        "filter_options: keep must be a whole number of 1 or more",
    ),
    ("opo", {"filter_options": {"keep": 2}}, 'unknown option of filter keep_all, "keep"; known: none'),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_option_is_one_sentence_with_key_and_value(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AlgorithmError) as caught:
        build_algorithm(name, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_no_trainer_computes_cannot_be_needed() -> None:
    parts = {"advantage": combine_rewards, "loss": policy_loss, "filter": keep_all}
    with pytest.raises(AlgorithmError, match='unknown need of algorithm mine, "entropie"; nearest: entropy'):
        Algorithm("mine", **parts, needs=frozenset({"entropie"}))
    with pytest.raises(AlgorithmError, match='algorithm mine: "values" in needs and `returns` go together'):
        Algorithm("mine", **parts, needs=frozenset({"values"}))


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with somebody's file in it."""
    (tmp_path / "somebodys_algorithms.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("place", ["somebodys_algorithms", "somebodys_algorithms.py"])
def test_algorithm_from_a_file_outside_the_package_works(place: str, outside: Path) -> None:
    algorithm = build_algorithm(f"{place}:constant_baseline", {"baseline": 0.25, "kl_coef": 0.1, "reference": "ema"})
    assert isinstance(algorithm, Algorithm)
    rewards = np.array([[1.0], [3.0]], np.float32)
    # 1 - 0.25, 3 - 0.25
    np.testing.assert_allclose(algorithm.advantage(rewards, WEIGHTS[:1], np.zeros(2, int)), [0.75, 2.75])
    assert algorithm.reference == Reference("ema")
    assert algorithm.loss.keywords["surrogate"] is reinforce  # type: ignore[attr-defined]


def test_bad_option_of_an_algorithm_outside_the_package_gets_the_nearest(outside: Path) -> None:
    with pytest.raises(AlgorithmError, match=r'"filtr"; nearest: filter; known: baseline, compare_kept, '):
        build_algorithm("somebodys_algorithms:constant_baseline", {"filtr": "keep_all"})
    with pytest.raises(AlgorithmError, match="must return an Algorithm, but returned int"):
        build_algorithm("somebodys_algorithms.py:not_an_algorithm")


def test_algorithm_outside_the_package_trains_by_overrides_alone(outside: Path) -> None:
    Stack.tiny_random(seed=0).save_pretrained(outside / "tiny")
    overrides = [
        "model.path=tiny",
        "reward=contrast",
        "prompts.heldout_count=0",
        "run=here",
        "trainer=quick",
        "trainer.steps=1",
    ]
    overrides += ["trainer.trackers=[]", "trainer.evaluation.reward=null", "trainer.checkpoint_every=null"]
    overrides += ["algorithm.name=somebodys_algorithms.py:constant_baseline", "~algorithm.options"]
    ran = CliRunner().invoke(app, ["train", *overrides, "+algorithm.options={baseline: 0.25, entropy_coef: 0.01}"])
    assert ran.exit_code == 0, ran.stderr
    [row] = [json.loads(line) for line in (outside / "here" / "metrics.jsonl").read_text().splitlines()]
    assert row["skipped"] == 0.0
    assert row["grad_norm"] > 0.0


def test_listing_algorithms_needs_no_torch() -> None:
    code = "import sys; from xomni_rl.policies.algorithms.base import algorithms as a; print(len(a.describe()));"
    code += " print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{len(NAMES)}\nFalse\n"


def test_options_that_all_share_are_those_after_an_algorithms_own() -> None:
    assert COMMON_OPTIONS[0] == "filter"
    assert COMMON_OPTIONS[-1] == "correction_floor"
    assert len(SHARING) == len(NAMES) - 1  # all but dpo, which has no policy gradient
