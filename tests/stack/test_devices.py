"""A device by its name: what is here, what is not, and who is told which option to change."""

import pytest
import torch

from xomni_rl.experiments.run import device_of
from xomni_rl.stack.devices import usable_device
from xomni_rl.stack.stack import StackError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def test_device_that_is_here_is_given() -> None:
    assert usable_device("cpu", "--device") == torch.device("cpu")
    assert usable_device("auto", "--device").type == ("cuda" if torch.cuda.is_available() else "cpu")


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_gpu_on_a_machine_without_one_says_what_to_use(name: str) -> None:
    with pytest.raises(StackError, match=f"^model.device={name}: there is no CUDA device here; use cpu or auto$"):
        device_of({"device": name})


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an MPS device here")
def test_mps_on_a_machine_without_one_says_what_to_use() -> None:
    with pytest.raises(StackError, match="there is no MPS device here; use cpu or auto"):
        usable_device("mps", "--device")


def test_index_out_of_range_names_the_last_one() -> None:
    with pytest.raises(StackError, match=r"^--device=cpu:1: the last CPU device here is cpu:0; use it, or auto$"):
        usable_device("cpu:1", "--device")


@pytest.mark.parametrize(("name", "said"), [("warp", "is no device; write auto, cpu, cuda"), ("meta", "no META device here")])
def test_name_of_no_device_or_of_one_that_computes_nothing_is_refused(name: str, said: str) -> None:
    with pytest.raises(StackError, match=said):
        usable_device(name, "--device")
