import pytest

from xomni_rl.policies.update import learning_rate_share


def test_warm_up_rises_linearly_to_the_whole_rate() -> None:
    assert [learning_rate_share(done, 4, None) for done in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_decay_falls_linearly_to_a_tenth_and_stays() -> None:
    # 1 − 0.9·done/100
    shares = [learning_rate_share(done, 0, 100) for done in (0, 50, 100, 250)]
    assert shares == pytest.approx([1.0, 0.55, 0.1, 0.1])
