"""What is written after `xomni-rl plan`."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xomni_rl.cli import app
from xomni_rl.config import ConfigError
from xomni_rl.experiments import conf
from xomni_rl.experiments.planning.gpus import GIB, GPUS, GpuError, parse_gpus
from xomni_rl.experiments.planning.job import PlanError
from xomni_rl.experiments.planning.sizes import full_size_model
from xomni_rl.experiments.planning.words import planned, split_words

CONF = Path(conf.__file__).parent
PAPER = ["model=xomni_7b", "trainer=fsdp2", "gpus=8x80GB"]


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8x80GB", 8, "80GB"),
        ("8xH100", 8, "H100-80GB"),
        ("4×h200", 4, "H200"),
        ("RTX4090", 1, "RTX4090"),
        ("2x4090", 2, "RTX4090"),
    ],
)
def test_gpus_are_read_by_memory_or_name(text: str, count: int, name: str) -> None:
    assert (parse_gpus(text)[0], parse_gpus(text)[1].name) == (count, name)


def test_gpu_known_by_its_memory_is_as_fast_as_a_slow_one_of_that_size() -> None:
    _, gpu = parse_gpus("80GB")
    assert (gpu.tensor, gpu.bandwidth) == (GPUS["A100-80GB"].tensor, GPUS["A100-80GB"].bandwidth)
    assert gpu.usable == int(80 * 0.985 * GIB)
    assert parse_gpus("96GB")[1].tensor == GPUS["A100-80GB"].tensor
    assert parse_gpus("12GB")[1].memory == 12


@pytest.mark.parametrize("text", ["0x80GB", "8 80GB", "8xH1000", "x", "8xx", "0GB"])
def test_gpus_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(GpuError):
        parse_gpus(text)


def test_own_words_and_overrides_are_told_apart() -> None:
    own, overrides = split_words([*PAPER, "size=384x384", "seed=1", "trainer.group_size=4"])
    assert own == {"launch": "fsdp2", "gpus": "8x80GB", "size": "384x384"}
    assert overrides == ["model=xomni_7b", "trainer=paper", "seed=1", "trainer.group_size=4"]


def test_published_sizes_count_where_no_checkpoint_lies() -> None:
    job = planned(PAPER)
    assert job.model == full_size_model()
    assert (job.launch, job.gpus, job.width, job.mixed, job.checkpointing) == ("fsdp2", 8, 2, True, True)
    assert (job.prompts, job.group, job.accumulation) == (32, 16, 1)  # of trainer=paper
    assert (job.at_a_time, job.decoder_offloaded) == (4, True)
    assert job.tokens == (1152 // 16) ** 2


def test_process_has_its_share_of_prompts_and_of_a_pass() -> None:
    job = planned(PAPER)
    assert job.rows == 32 // 8 * 16
    assert (job.micro_groups, job.passes) == (32 // 8, 1)
    assert job.pieces == 4 * 16 // 4  # four images of a group at a time
    # 32 groups in 8 passes of 4, shared by 8 processes: a process has one group, and half of them repeat another's.
    many = planned([*PAPER, "trainer.accumulation=8"])
    assert (many.micro_groups, many.passes) == (1, 8)
    assert job.evaluated == 64 // 8


def test_algorithm_says_whether_there_is_a_reference_and_a_critic() -> None:
    assert planned(["algorithm.options.kl_coef=0.01"]).reference
    assert planned(["algorithm=ppo"]).critic
    assert planned(["algorithm.options.entropy_coef=0.01"]).entropy
    job = planned([])
    assert (job.reference, job.critic, job.entropy) == (False, False, False)
    assert (job.launch, job.tokens) == ("single", 48)  # the embedded stack's 4 × 12


def test_lora_trains_adapters_alone() -> None:
    job = planned(["model.lora={rank: 4}"])
    assert job.trained == job.adapters == job.model.adapters(4)
    assert job.rank == 4


def test_decoder_is_planned_as_training_would_load_it() -> None:
    job = planned(["model=xomni_7b", "model.options.decoder.batch=2", "model.options.decoder.offload=true"])
    assert (job.parts.batch, job.decoder_offloaded) == (2, True)
    assert planned(["model=xomni_7b"]).parts.batch == 4  # of the file
    assert planned([]).parts.batch is None


def commands_of_the_configurations() -> list[str]:
    """Words of every `xomni-rl plan` in the comments of a configuration."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(CONF.rglob("*.yaml"))]
    return [found for text in texts for found in re.findall(r"xomni-rl plan((?: \w+=\S+)+)", text)]


@pytest.mark.parametrize("words", commands_of_the_configurations())
def test_command_in_a_comment_of_a_configuration_makes_a_plan(words: str) -> None:
    ran = CliRunner().invoke(app, ["plan", *shlex.split(words)])
    assert ran.exit_code == 0, ran.output
    assert "total without rewards" in ran.output


def test_experiment_of_the_published_model_is_planned_without_its_checkpoint_and_prompts() -> None:
    assert "experiment=xomni_paper gpus=8xH200" in "".join(commands_of_the_configurations())
    job = planned(["experiment=xomni_paper", "gpus=8xH200"])
    assert (job.prompts * job.group, job.tokens) == (512, 72 * 72)


def test_what_is_missing_besides_prompts_is_asked_for_as_train_does() -> None:
    with pytest.raises(ConfigError, match=r"model\.path must be given"):
        planned(["model=folder", "prompts=file"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=folder", "model.path=nowhere"], "model.path nowhere is not there: .*model=xomni_7b"),
        (["size=100x100"], "size 100x100 is no multiple of a token's 8 px"),
        (["size=big"], "size must read HEIGHTxWIDTH"),
        (["prompt_tokens=0"], "prompt_tokens must be a whole number of at least 1"),
        (["launch=fsdp"], 'unknown launch "fsdp"; nearest: fsdp2'),
        (["launch=single", "gpus=2xH100"], "launch=single uses one GPU, not 2"),
        (["model=xomni_7b", "gpus=2xH100"], "weights of 16 bits .* set trainer.mixed_precision=bf16"),
        (["++model.family=janus"], "only X-Omni's family can be planned, not model.family=janus"),
    ],
)
def test_words_that_make_no_plan_are_refused_in_a_sentence(words: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        planned(words)


def test_wrong_override_is_refused_as_train_refuses_it() -> None:
    with pytest.raises(ConfigError, match=r'unknown configuration key "trainer\.stpes"'):
        planned(["trainer.stpes=3"])


def test_folder_without_a_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="holds no stack"):
        planned(["model=folder", f"model.path={tmp_path}"])
