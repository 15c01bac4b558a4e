"""Alarms: pure functions of a step's metrics."""

import pytest

from xomni_rl.policies.alarms import raised_alarms, worth_showing
from xomni_rl.policies.settings import AlarmSettings, SettingsError

SETTINGS = AlarmSettings(kl_limit=0.5)
FINE = {
    "zero_variance_share": 0.5,
    "reward_std": 0.2,
    "ratio_max_deviation": 1e-5,
    "entropy": 1.0,
    "failed_share": 0.0,
    "kl_reference": 0.1,
}


def test_healthy_step_raises_nothing_and_logs_every_check() -> None:
    alarms, flags = raised_alarms(FINE, SETTINGS)
    assert alarms == []
    names = ("zero_variance", "constant_reward", "ratio_off_one", "entropy_collapse", "failed_scores", "kl_limit")
    assert flags == {f"alarm/{name}": 0.0 for name in names}


@pytest.mark.parametrize(
    ("metric", "value", "name", "advice"),
    [
        ("zero_variance_share", 0.81, "zero_variance", "group_size"),
        ("reward_std", 0.0, "constant_reward", "look at the images"),
        ("ratio_max_deviation", 2e-3, "ratio_off_one", "mixed precision"),
        ("entropy", 0.04, "entropy_collapse", "learning_rate"),
        ("failed_share", 0.2, "failed_scores", "details"),
        ("kl_reference", 0.6, "kl_limit", "kl_coef"),
    ],
)
def test_metric_beyond_its_limit_raises_one_alarm_with_advice(metric: str, value: float, name: str, advice: str) -> None:
    alarms, flags = raised_alarms({**FINE, metric: value}, SETTINGS)
    assert [alarm.name for alarm in alarms] == [name]
    assert advice in alarms[0].message
    assert alarms[0].value == value
    assert [flag for flag, raised in flags.items() if raised] == [f"alarm/{name}"]


def test_ratio_of_16_bits_has_a_limit_of_its_own() -> None:
    names = [
        [alarm.name for alarm in raised_alarms({**FINE, "ratio_max_deviation": value}, SETTINGS, low=True)[0]]
        for value in (0.2, 0.6)  # a limit of 0.5
    ]
    assert names == [[], ["ratio_off_one"]]


def test_value_at_its_limit_is_still_fine() -> None:
    metrics = {"zero_variance_share": 0.8, "entropy": 0.05, "failed_share": 0.1, "kl_reference": 0.5}
    assert raised_alarms(metrics, SETTINGS)[0] == []


def test_metric_that_was_not_computed_is_not_checked() -> None:
    assert raised_alarms({"reward_std": 0.1}, SETTINGS)[1] == {"alarm/constant_reward": 0.0}


def test_no_kl_limit_checks_no_kl() -> None:
    assert raised_alarms({"kl_reference": 99.0}, AlarmSettings())[1] == {}


@pytest.mark.parametrize("action", ["warn", "stop", "rollback"])
def test_kl_beyond_its_limit_does_what_it_is_asked_to(action) -> None:
    (alarm,), _ = raised_alarms({"kl_reference": 1.0}, AlarmSettings(kl_limit=0.5, kl_action=action))
    assert alarm.action == action


def test_unknown_kl_action_is_refused() -> None:
    with pytest.raises(SettingsError, match="kl_action"):
        AlarmSettings(kl_action="panic")  # type: ignore[arg-type]


def test_repeated_alarm_is_shown_ever_more_rarely() -> None:
    assert [count for count in range(20) if worth_showing(count)] == [1, 2, 4, 8, 16]
