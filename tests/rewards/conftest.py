"""For all tests of rewards: they also run beside other work on two cores."""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("beside other work", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside other work")


@pytest.fixture(scope="package", autouse=True)
def one_thread_of_torch() -> Iterator[None]:
    """Tiny models gain nothing from a second thread, and wait long for it when the core is taken."""
    torch = sys.modules.get("torch")
    if torch is None:  # no module of this run has imported it
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
