"""Jobs and stacks small enough to count by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xomni_rl.experiments.planning.check import Case
from xomni_rl.experiments.planning.job import Job

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job() -> MakeJob:
    """A job on one GPU: 2 layers of h = 64, i = 128, 4 heads and 2 key heads of 16; 384 + 528 ids, V = 512; 2 × 8 images of
    8 × 16 = 128 tokens after 20 ids. What is given is changed."""
    case = Case("small", layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2)
    job = replace(case.job(20), on_cpu=False)

    def make(**changed: Any) -> Job:
        return replace(job, **changed)

    return make
