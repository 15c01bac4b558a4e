"""Formulas against what autograd, torch's optimizer and the sampler really hold, and by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from xomni_rl.experiments.planning.check import Case
from xomni_rl.experiments.planning.job import Job
from xomni_rl.experiments.planning.memory import (
    CONTEXT,
    backward,
    decoding,
    gathered,
    gradients_after,
    gradients_before,
    layer_activations,
    layer_at_work,
    logits,
    memory,
    prompt_activations,
    resident_parts,
    sampling,
    scorer_activations,
    starting,
)
from xomni_rl.experiments.planning.rewards import RewardSize
from xomni_rl.policies.lora import add_adapters
from xomni_rl.stack.autoregressive import XOmniForCausalLM
from xomni_rl.stack.sampler import score_image_tokens

MakeJob = Callable[..., Job]
CASES = [
    Case("float32", layers=3, hidden=112, intermediate=320, heads=7, kv_heads=1, size=(32, 96)),
    Case("bfloat16", layers=3, hidden=112, intermediate=320, heads=7, kv_heads=1, size=(32, 96), dtype="bfloat16"),
    Case("adapters", layers=3, hidden=128, intermediate=256, heads=4, kv_heads=2, size=(64, 64), rank=8),
    Case("many rows", layers=4, hidden=64, intermediate=192, heads=4, kv_heads=4, prompts=3, group=16, size=(64, 128)),
]


def kept_by_autograd(case: Case, prompt_tokens: int) -> int:
    """Bytes of the tensors that a scorer's forward keeps for its backward, weights left out, each storage once."""
    model = XOmniForCausalLM(case.config()).to(torch.bfloat16 if case.dtype == "bfloat16" else torch.float32).eval()
    if case.rank:
        add_adapters(model, rank=case.rank)
    prompts = torch.randint(case.text, (case.prompts, prompt_tokens))
    prompts[:, -1] = case.text + case.images + 2
    mask = torch.ones_like(prompts)
    mask[0, :3] = 0
    tokens = torch.randint(case.images, (case.prompts * case.group, case.job(prompt_tokens).tokens))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        score_image_tokens(model, prompts, mask, tokens, group_size=case.group)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_planned_activations_are_what_autograd_keeps(case: Case) -> None:
    job = case.job(12)
    log_probabilities = 4 * case.prompts * case.group * job.tokens * case.images
    planned = scorer_activations(job, case.prompts, case.prompts * case.group) + log_probabilities
    assert planned == pytest.approx(kept_by_autograd(case, 12), rel=0.01)


def test_one_gpu_holds_weights_gradients_and_moments_of_everything_trained(make_job: MakeJob) -> None:
    job = make_job()
    trained = job.model.parameters - 384 * 64  # without the text head
    parts = memory(job)
    assert parts.resident["weights"] == 4 * job.model.parameters
    assert parts.resident["AdamW moments"] == 8 * trained
    assert parts.phases["optimizer"] == {"gradients": 4 * trained, "optimizer's temporaries": 4 * trained}
    assert "reference" not in parts.phases
    assert parts.resident["CUDA"] == CONTEXT


def test_ddp_holds_buckets_of_everything_trainable(make_job: MakeJob) -> None:
    job = make_job(launch="ddp", gpus=2)
    assert resident_parts(job)["ddp buckets"] == 4 * job.model.parameters
    assert resident_parts(make_job(launch="ddp"))["ddp buckets"] == 0  # torch makes none for one process


def test_fsdp2_divides_copy_and_moments_and_keeps_a_whole_model(make_job: MakeJob) -> None:
    job = make_job(launch="fsdp2", gpus=4, width=2, mixed=True)
    everything, parts = job.model.parameters, resident_parts(job)
    assert parts["weights"] == 2 * everything
    assert parts["divided copy"] == 4 * everything // 4  # float32 under mixed precision
    assert parts["AdamW moments"] == 8 * job.trained // 4
    assert starting(job)["copy before it is divided"] == 4 * everything
    embeddings_heads_norms = everything - job.model.body
    assert gathered(job) == 2 * (embeddings_heads_norms + job.model.body)  # two layers are all of this model


def test_fsdp2_keeps_whole_gradients_between_passes_of_a_step(make_job: MakeJob) -> None:
    once = make_job(launch="fsdp2", gpus=2, prompts=4, accumulation=1)
    twice = replace(once, accumulation=2)
    assert gradients_before(once, again=False) == 0
    assert gradients_before(once, again=True) == 4 * once.trained // 2  # of an earlier group of the same pass
    assert gradients_before(twice, again=True) == 4 * once.trained
    assert gradients_after(twice) - gradients_after(once) == 4 * once.trained // 2


def test_zero3_holds_float32_masters(make_job: MakeJob) -> None:
    parts = resident_parts(make_job(launch="deepspeed_zero3", gpus=2, width=2, mixed=True))
    assert parts["divided copy"] == 6 * parts["weights"] // 2 // 2
    assert parts["AdamW moments"] == 8 * parts["weights"] // 2 // 2


def test_reference_is_a_whole_copy_unless_there_are_adapters(make_job: MakeJob) -> None:
    with_copy = make_job(reference=True, launch="fsdp2", gpus=8)
    assert resident_parts(with_copy)["reference"] == resident_parts(with_copy)["weights"]
    adapted = replace(with_copy, adapters=1000, rank=4, adapted=("q_proj",))
    assert resident_parts(adapted)["reference"] == 0
    assert "reference" in memory(adapted).phases  # it is still computed


def test_layers_computed_again_keep_their_inputs_and_one_layer_at_work(make_job: MakeJob) -> None:
    job = make_job(checkpointing=True)
    rows, queries, prompts, length = 16, 127, 2, job.prompt_tokens
    inputs = 4 * 64 * (rows * queries + prompts * length)  # float32, hidden size 64
    shared = rows * queries * (length + queries + 8 * 16) + prompts * length * (length + 8 * 16)  # mask; cosines, sines of 16
    noted = 2 * job.model.kv_heads * 16 * prompts * length * 4
    after = rows * 128 * 64 * (4 + 2 * 4)
    assert scorer_activations(job, 2, 16) == job.model.layers * (inputs + noted) + shared + after
    assert layer_at_work(job, 16) > layer_activations(job, 16, queries, length + queries)
    assert scorer_activations(job, 2, 16) < scorer_activations(replace(job, checkpointing=False), 2, 16) / 4


def test_rows_at_a_time_keep_what_a_piece_of_a_group_needs(make_job: MakeJob) -> None:
    together, rows = backward(make_job()), backward(make_job(at_a_time=4))
    prompts = prompt_activations(make_job(), 1)
    # 4 images of one group instead of 8 of two
    assert rows["activations"] - prompts == (together["activations"] - 2 * prompts) // 4
    assert rows["gradients"] > 0  # those of the piece before
    assert together["gradients"] == 0
    assert (make_job(at_a_time=3).pieces, make_job(at_a_time=3).piece) == (2 * 3, (1, 3))  # 3 + 3 + 2 images, two groups


def test_compiled_sampler_joins_no_weights_and_keeps_its_cache(make_job: MakeJob) -> None:
    eager, compiled = memory(make_job()), memory(make_job(compiled=True))
    assert "joined weights" not in compiled.phases["sampling"]
    # 20 ids of a prompt take 32 slots, 32 + 128 is a multiple of 8; the eager cache has 20 + 128
    assert compiled.resident["sampler's cache"] * 148 == eager.phases["sampling"]["KV cache"] * 160
    assert "sampler's cache" not in eager.resident


def test_offloaded_reference_is_there_for_its_pass_alone(make_job: MakeJob) -> None:
    plan = memory(make_job(reference=True, reference_offloaded=True))
    assert "reference" not in plan.resident
    assert plan.phases["reference"]["reference"] == plan.resident["weights"]
    assert plan.phases["start"]["reference"] == plan.resident["weights"]  # it is copied before it leaves


def test_logits_are_held_in_pieces_of_whole_tokens(make_job: MakeJob) -> None:
    job = make_job()
    assert logits(job, 16) == 12 * 16 * 128 * 512
    assert logits(replace(job, entropy=True), 16) == 21 * 16 * 128 * 512
    large = replace(job, model=replace(job.model, images=16000))
    assert logits(large, 16) == 12 * (2**24 // 16000) * 16000  # 1048 tokens of 2048
    assert logits(replace(large, guided=True), 16) == (12 + 4 * 4) * (2**24 // 32000) * 16000


def test_decoder_works_on_as_many_images_as_it_is_given(make_job: MakeJob) -> None:
    job = make_job()
    job = replace(job, parts=replace(job.parts, vae_channels=0, width=160, text=1))
    assert decoding(job) == 16 * 4 * 14 * 160 * 129
    assert decoding(replace(job, parts=replace(job.parts, batch=2))) == decoding(job) // 8
    with_vae = replace(job, parts=replace(job.parts, vae_channels=128, batch=1))
    assert decoding(with_vae) == 4 * 3 * 256 * 128 * 64  # pixels of 128 tokens of 8 × 8


def test_kv_cache_holds_keys_and_values_of_every_row(make_job: MakeJob) -> None:
    # 2 · 2 layers · 2 heads · 16 · 16 rows · (20 + 128) positions · 4 bytes.
    assert sampling(make_job())["KV cache"] == 2 * 2 * 2 * 16 * 16 * 148 * 4
    assert sampling(make_job(guided=True))["KV cache"] == 2 * sampling(make_job())["KV cache"]
    assert sampling(make_job(evaluated=32))["KV cache"] == 2 * sampling(make_job())["KV cache"]


def test_offloaded_parts_are_there_only_while_they_work(make_job: MakeJob) -> None:
    job = make_job(rewards=(RewardSize("judge", 1000, offloaded=True), RewardSize("clip", 10)), decoder_offloaded=True)
    job = replace(job, parts=replace(job.parts, transformer=50, encoders=70, codec=5))
    plan = memory(job)
    assert plan.resident["rewards"] == 10
    assert plan.phases["rewards"]["rewards"] == 1000
    assert plan.phases["decoding"]["decoder"] == 4 * 70
    assert "decoder" not in plan.resident


def test_critic_holds_features_and_its_optimizer(make_job: MakeJob) -> None:
    plan = memory(make_job(critic=True))
    assert plan.resident["critic"] == 16 * (64 * 64 + 4 * 64 + 2)
    assert plan.phases["backward"]["features"] == 4 * 16 * 128 * 64


def test_fullest_phase_gives_the_peak(make_job: MakeJob) -> None:
    plan = memory(make_job())
    assert plan.peak == max(plan.total(phase) for phase in plan.phases) == plan.total(plan.fullest)
    assert plan.total("start") == sum(plan.phases["start"].values())
