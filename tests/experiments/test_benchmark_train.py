"""The benchmark of a training step: its parts, the gate both sides go through, TRL's side, and the fit of the cost."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xomni_rl.experiments.benchmarks._full_vocabulary import with_full_vocabulary
from xomni_rl.experiments.benchmarks._gate import Gate
from xomni_rl.experiments.benchmarks._same_job import check_same, first_step
from xomni_rl.experiments.benchmarks._train_cost import Point, affine_fit, cost
from xomni_rl.experiments.benchmarks._train_sides import job_config
from xomni_rl.experiments.benchmarks._turns import Turns, take_turns
from xomni_rl.experiments.benchmarks.train import PARTS, beside_trl, named, print_sides, shares
from xomni_rl.stack.stack import Stack

TINY = ("model.path=tiny_random", "trainer.prompts_per_step=2", "trainer.group_size=2", "prompts.train_count=8")
SMALL = ("trainer.prompts_per_step=2", "trainer.group_size=4", "prompts.train_count=64")
PROMPTS = ['a red sign that says "K7AX"', 'the word "P2" in white on teal']


@pytest.fixture(scope="module")
def embedded() -> Stack:
    return Stack.from_pretrained("embedded")


def test_share_outside_the_model_is_what_its_parts_say(capsys: pytest.CaptureFixture[str]) -> None:
    figures = shares(steps=3, overrides=(*TINY, "trainer.checkpoint_every=10"))
    assert figures["steps"] == 3
    assert figures["checkpoint_every"] == 10
    share = figures["checkpoint_seconds"] / 10
    outside = figures["seconds"]["other"] + share
    assert figures["ratio"] == pytest.approx(outside / (figures["seconds"]["total"] + share))
    assert 0 < figures["ratio"] < 1
    # two prompts with two images each
    assert figures["images_per_second"] == pytest.approx(4 / figures["seconds"]["total"])
    printed = capsys.readouterr().out
    assert all(part in printed for part in (*PARTS, "checkpoint's share", "total"))


def test_gate_lets_as_many_steps_through_as_ordered_and_reports_them_with_their_memory() -> None:
    answers = io.StringIO()
    gate = Gate(io.StringIO("0\n1\n2\n"), answers)
    gate.wait()
    block = np.ones(2**23)  # 64 MiB, taken in the first step
    for _ in range(2):
        gate.wait()
    with pytest.raises(EOFError):
        gate.wait()
    reports = [json.loads(line) for line in answers.getvalue().splitlines()]
    # before the first order, after none, after 1 and after 2 steps
    assert [len(report["seconds"]) for report in reports] == [0, 0, 1, 2]
    assert reports[0]["mib"] < 32 < 60 < reports[2]["mib"]
    assert block.nbytes == 2**26


def test_full_vocabulary_draws_the_same_pictures_with_a_copys_share_of_the_probability(embedded: Stack) -> None:
    large = with_full_vocabulary(embedded, vocab_size=500, mm_vocab_size=1100, image_vocab_size=1024)
    ours, theirs = (stack.generate(PROMPTS, group_size=2, seed=3) for stack in (embedded, large))
    # 1024 image tokens are two copies of 512, side by side: token 2k and 2k + 1 are k, each half as likely
    assert torch.equal(theirs.tokens // 2, ours.tokens)
    torch.testing.assert_close(theirs.logprobs, ours.logprobs - math.log(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs.entropy, ours.entropy + math.log(2), atol=1e-4, rtol=0)
    assert np.array_equal(theirs.images, ours.images)


def test_full_vocabulary_in_no_whole_copies_is_refused(embedded: Stack) -> None:
    with pytest.raises(ValueError, match="1000 image and 500 text tokens don't hold 512 and 384"):
        with_full_vocabulary(embedded, vocab_size=500, mm_vocab_size=1100, image_vocab_size=1000)


def test_joined_head_gives_image_tokens_our_probability_and_all_else_none(embedded: Stack) -> None:
    pytest.importorskip("trl")
    from xomni_rl.experiments.benchmarks._trl_peer import JoinedHeadForCausalLM

    model = embedded.model
    joined = JoinedHeadForCausalLM.of(model).eval()
    ids, mask = embedded.encode_prompts(PROMPTS)
    with torch.no_grad():
        everything = joined(ids, mask, logits_to_keep=1).logits[:, 0].log_softmax(-1)
        ours = model(ids, mask, modality="image", logits_to_keep=1).logits[:, 0].log_softmax(-1)
    first, last = 384, 384 + 512
    torch.testing.assert_close(everything[:, first:last], ours, atol=1e-5, rtol=0)
    others = torch.cat([everything[:, :first], everything[:, last:]], 1)
    assert others.exp().max() == 0
    count = sum(parameter.numel() for parameter in joined.parameters())
    assert count == sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return job_config(1, SMALL, tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def done(job: dict[str, Any]) -> dict[str, Any]:
    """Two sides that did the same: eight rows of 48 tokens with rewards that differ within each group."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(512, (8, 48), generator=generator).tolist()
    rewards = [0.0, 0.5, 0.5, 1.0, 1.0, 0.0, 0.0, 0.25]
    same = {
        "calls": [[8, 48]],
        "prompts": PROMPTS,
        "trainable": 7,
        "dtypes": ["torch.float32"],
        "loss": "grpo",
        "updates": 1,
        "weights": 2.0,
    }
    first = first_step(tokens, rewards, job)
    return {"ours": same, "trl": same | {"first": {"tokens": tokens, "rewards": rewards, **first}}}


def test_sides_that_did_the_same_pass(done: dict[str, Any], job: dict[str, Any]) -> None:
    assert check_same(done, job) == {"loss": 0.0, "grad_norm": 0.0, "entropy": 0.0}
    # advantages of a group sum to 0, and at the first step every importance ratio is 1
    assert done["trl"]["first"]["loss"] == pytest.approx(0, abs=1e-6)
    assert done["trl"]["first"]["grad_norm"] > 0.01


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("calls", [[8, 47]]),
        ("prompts", PROMPTS[::-1]),
        ("trainable", 8),
        ("dtypes", ["torch.bfloat16"]),
        ("loss", "dapo"),
        ("updates", 2),
        ("weights", 2.00001),
    ],
)
def test_side_that_did_something_else_is_named(done: dict[str, Any], job: dict[str, Any], what: str, value: Any) -> None:
    other = done | {"trl": done["trl"] | {what: value}}
    with pytest.raises(RuntimeError, match=f"not the same job: .*{what}: .* with us, .* with trl"):
        check_same(other, job)


@pytest.mark.parametrize(("what", "change"), [("loss", 1e-4), ("grad_norm", 0.01), ("entropy", 1e-4)])
def test_first_step_with_other_figures_is_named(done: dict[str, Any], job: dict[str, Any], what: str, change: float) -> None:
    first = done["trl"]["first"]
    other = done | {"trl": done["trl"] | {"first": first | {what: first[what] + change}}}
    with pytest.raises(RuntimeError, match=f"{what} of the first step"):
        check_same(other, job)


def test_defaults_of_a_group_decide_nothing_about_the_job(tmp_path: Path) -> None:
    # model=folder alone would be bfloat16 with activations computed twice, which TRL's side knows nothing of
    model = job_config(1, ["model=folder", "model.path=anywhere"], tmp_path)["model"]
    assert (model["dtype"], model["gradient_checkpointing"], model["device"]) == ("float32", False, "cpu")


def test_affine_fit_equals_least_squares_by_hand() -> None:
    # means 1 and 2; Sxy = 2 + 0 + 3 = 5, Sxx = 2: slope 2.5, intercept 2 - 2.5;
    # residuals 0.5, -1, 0.5: 1.5 of a total of 4 + 1 + 9 = 14
    fit = affine_fit([0, 1, 2], [0, 1, 5])
    assert fit == pytest.approx({"fixed": -0.5, "per_unit": 2.5, "r2": 1 - 1.5 / 14})


def test_affine_fit_of_a_constant_explains_nothing() -> None:
    fit = affine_fit([1, 2], [3, 3])
    assert (fit["fixed"], fit["per_unit"]) == pytest.approx((3, 0))
    assert math.isnan(fit["r2"])


def test_cost_has_a_row_per_size_and_a_line_per_axis(capsys: pytest.CaptureFixture[str]) -> None:
    small = Point(prompts=1, group=2, size=(32, 48))
    varied = {
        "prompts": [small, Point(2, 2, (32, 48))],
        "group": [small, Point(1, 3, (32, 48))],
        "tokens": [small, Point(1, 2)],
    }
    figures = cost(TINY, varied, steps=1, passes=1)
    sizes = [(row["prompts"], row["group"], row["tokens"]) for row in figures["points"]]
    # 8 px a token: 32×48 px are 4·6 tokens, 32×96 are 4·12; the common point is measured once
    assert sizes == [(1, 2, 24), (2, 2, 24), (1, 3, 24), (1, 2, 48)]
    for axis, (low, high) in {"prompts": (0, 1), "group": (0, 2), "tokens": (0, 3)}.items():
        rise = figures["points"][high]["seconds"] - figures["points"][low]["seconds"]
        span = figures["points"][high][axis] - figures["points"][low][axis]
        assert figures[axis]["per_unit"] == pytest.approx(rise / span)  # two points: the line goes through both
    printed = capsys.readouterr().out
    assert all(f"by {axis}:" in printed for axis in varied)


@pytest.mark.slow
def test_ours_trl_and_the_bridge_do_the_same_job_in_turns(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    found = beside_trl(("ours", "trl", "bridge"), Turns(warm_up=1, rounds=2, steps=1), SMALL)
    assert found["agreement"]["grad_norm"] < 1e-4
    assert len(found["ratios_to_trl"]) == len(found["ratios_to_bridge"]) == 2
    assert found["ratio_to_trl"] == pytest.approx(np.mean(found["ratios_to_trl"]), abs=1e-3)  # the median of two
    assert found["memory_ratio_to_trl"] == pytest.approx(found["ours"]["mib"] / found["trl"]["mib"], abs=1e-2)
    assert all(found[side]["mib"] > 10 for side in ("ours", "trl", "bridge"))
    print_sides({"small": found})
    printed = capsys.readouterr().out
    ratios = [f"{kind}_to_{side}" for kind in ("ratio", "memory_ratio") for side in ("trl", "bridge")]
    assert all(f"{found[name]:.3f}" in printed for name in ratios)
    assert named(found, "_full_vocabulary")["memory_ratio_to_trl_full_vocabulary"] == found["memory_ratio_to_trl"]


@pytest.mark.slow
def test_side_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ours: .*no stack at"):
        take_turns(["ours"], Turns(0, 1, 1), ["model=folder", f"model.path={tmp_path / 'nothing'}"])
