"""The shape check: what it accepts, and what its errors print."""

import numpy as np
import pytest
import torch

from xomni_rl.policies.shapes import check_shapes


def test_matching_arrays_of_both_libraries_give_axis_sizes():
    sizes = check_shapes(
        rewards=(np.zeros((4, 2), np.float32), "N K", "float"),
        logprobs=(torch.zeros(4, 6, dtype=torch.bfloat16), "N T", "float"),
        mask=(torch.ones(4, 6, dtype=torch.bool), "N T", "bool"),
        group=(np.arange(4), "N", "int"),
    )
    assert sizes == {"N": 4, "K": 2, "T": 6}


def test_differing_size_prints_both_shapes_and_the_axis():
    with pytest.raises(ValueError, match=r"mask must be \[N, T\], but has shape \(3, 4\) where logprobs has shape") as e:
        check_shapes(logprobs=(torch.zeros(3, 5), "N T", "float"), mask=(torch.ones(3, 4) > 0, "N T", "bool"))
    assert "(3, 5)" in str(e.value)
    assert "axis T is 4 against 5" in str(e.value)


def test_wrong_rank_prints_both_shapes():
    with pytest.raises(ValueError, match=r"group must be \[N\], but has shape \(2, 1\); rewards has shape \(2, 3\)"):
        check_shapes(rewards=(np.zeros((2, 3)), "N K", "float"), group=(np.zeros((2, 1), int), "N", "int"))


@pytest.mark.parametrize(("kind", "array"), [("float", np.arange(3)), ("int", np.zeros(3)), ("bool", np.arange(3))])
def test_wrong_dtype_is_named(kind, array):
    with pytest.raises(ValueError, match=f"x must hold {kind} values, but its dtype is {array.dtype}"):
        check_shapes(x=(array, "N", kind))


def test_number_accepts_integers_and_floats_but_not_booleans():
    check_shapes(x=(np.arange(3), "N", "number"), y=(np.zeros(3), "N", "number"))
    with pytest.raises(ValueError, match="dtype is bool"):
        check_shapes(x=(np.zeros(3, bool), "N", "number"))
