import math
from typing import Any

import pytest
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from schemas.config import AlarmsConfig
from schemas.errors import ConfigError
from stream_trainer.watching import exposition, health
from stream_trainer.watching.alarms import Alarm
from stream_trainer.watching.health import CALM_S, LASTS_S, SILENT_S, Condition, Health, Minute, joiner_rates

NOW_US = 1_700_000_000_000_000
ALARMS = AlarmsConfig()

JOINER: dict[str, Any] = {
    "counts": {"impressions": 10, "actions": 4, "examples": 100, "suspect": 30}, "rates": joiner_rates({}), "open": 2,
    "lag": {"0": 0, "1": 0}, "read_age_s": 0.1, "event_age_s": 1.0, "unwritten": None,
    "labels": {"stopped": [], "missing": 0.0, "usual": 0.05},
}
TRAINER: dict[str, Any] = {
    "tallies": {"examples": 100, "positives": 5}, "dropped": 0, "gaps": 0, "idle_s": 1.5, "windows_lost": 0, "lag": {"0": 0},
    "read_age_s": 0.1, "newest_version": 7, "newest_version_us": NOW_US - 2_000_000, "newest_joined_us": NOW_US - 500_000,
    "unpublished": 0, "rate_factor": 1.0, "gate": {"held": False}, "click_to_learnt_s": {"0.5": 0.2, "0.99": 0.9},
    "unwritten": None,
}


def wrong_of(conditions: Any) -> list[str]:
    return [one.what for one in conditions if one.wrong]


def test_what_lasts_is_raised_once_and_over_once_it_has_been_gone_for_a_while() -> None:
    """A condition that flickers is no alarm, nor is its end while it flickers; both name when it began."""
    watched, said = Health(), []
    for second in range(60):
        wrong = second == 2 or 10 <= second < 40 or second == 45
        said += [
            (second, one.state, (one.since_us - NOW_US) // 1_000_000)
            for one in watched.look([Condition("lag", wrong, "text")], float(second), NOW_US + second * 1_000_000)
        ]
    assert said == [(10 + LASTS_S, "raised", 10), (46 + CALM_S, "over", 10)]


def test_wall_clocks_that_jump_raise_and_end_nothing() -> None:
    """Durations are of the clock that goes forward: an hour that the wall clock leaps is no hour that something lasted."""
    watched = Health()
    assert not watched.look([Condition("lag", True, "text")], 0.0, NOW_US)
    assert not watched.look([Condition("lag", True, "text")], 1.0, NOW_US + 3_600_000_000)
    assert [one.state for one in watched.look([Condition("lag", True, "text")], LASTS_S, 0)] == ["raised"]


def test_what_stood_open_before_the_start_is_ended_and_not_raised_again() -> None:
    """A process that starts again knows what it had raised."""
    before = Alarm(what="lag", state="raised", time_us=1, since_us=5, text="")
    assert not Health([before]).look([Condition("lag", True, "text")], 100.0, NOW_US)
    watched = Health([before])
    watched.look([Condition("lag", False, "text")], 0.0, NOW_US)
    (over,) = watched.look([Condition("lag", False, "text")], CALM_S, NOW_US)
    assert (over.state, over.since_us) == ("over", 5)


def test_a_well_stream_has_no_condition() -> None:
    """The figures of processes that are well."""
    assert wrong_of(health.of_joiner(JOINER, ALARMS)) == []
    assert wrong_of(health.of_trainer(TRAINER, ALARMS, NOW_US, 0.5)) == []


@pytest.mark.parametrize(("changed", "what", "says"), [
    ({"labels": {"stopped": [3], "missing": 51.0, "usual": 0.05}}, "labels.stopped", "partition 3: 51 are missing"),
    ({"lag": {"0": 0, "1": 900}, "read_age_s": 61.0}, "lag", "900 records wait, most in partition 1"),
    ({"rates": joiner_rates({"impressions": 950, "dead_letter": 50})}, "dead_letters", "5.0%"),
    ({"rates": joiner_rates({"actions": 200, "late_action": 20, "unmatched_action": 20})}, "actions.lost", "20.0%"),
    ({"unwritten": "No space left on device"}, "metrics.disk", "No space left"),
])
def test_each_thing_that_is_wrong_with_a_joiner_is_one_condition(changed: dict[str, Any], what: str, says: str) -> None:
    """And nothing else is said of it; the text holds the figures."""
    conditions = list(health.of_joiner(JOINER | changed, ALARMS))
    assert wrong_of(conditions) == [what]
    assert says in next(one.text for one in conditions if one.wrong)


@pytest.mark.parametrize(("changed", "silent_s", "what"), [
    ({"newest_version_us": NOW_US - 61_000_000, "unpublished": 5}, 0.5, ["version.old"]),
    ({"newest_version_us": NOW_US - 61_000_000}, 0.5, []),                                       # nothing to publish
    ({"newest_version_us": NOW_US - 61_000_000, "unpublished": 5, "gate": {"held": True}}, 0.5, []),   # the gate says so
    ({"rate_factor": 0.5}, 0.5, ["learner.diverged"]),
    ({"gaps": 2}, 0.5, ["examples.gap"]),
    ({"lag": {"0": 10}, "read_age_s": 100.0}, 0.5, ["lag"]),
    ({"lag": {"0": 0}, "read_age_s": 100.0}, 0.5, []),                                           # a quiet night
    ({"unwritten": "windows: disk full"}, 0.5, ["metrics.disk"]),
    ({}, SILENT_S + 1, ["trainer.stuck"]),
])
def test_each_thing_that_is_wrong_with_a_trainer_is_one_condition(
    changed: dict[str, Any], silent_s: float, what: list[str]
) -> None:
    """And what only looks like it is none."""
    assert wrong_of(health.of_trainer(TRAINER | changed, ALARMS, NOW_US, silent_s)) == what


def test_rates_are_of_the_last_minute_and_of_enough() -> None:
    """A day of good counts does not hide a bad minute; a share of a few is not taken."""
    minute = Minute()
    for second in range(0, 3600, 10):
        minute.of({"impressions": second * 10, "dead_letter": 0}, float(second))
    counts = minute.of({"impressions": 36_000, "dead_letter": 90}, 3600.0)
    assert counts == {"impressions": 600, "dead_letter": 90}
    assert joiner_rates(counts)["dead_letter_share"] == pytest.approx(90 / 690)
    assert joiner_rates({"impressions": 9, "dead_letter": 9})["dead_letter_share"] is None


def families(found: Any) -> dict[str, Any]:
    """Through OpenMetrics' own text and a strict parser of it, as Prometheus gets it."""
    class Given:
        def collect(self) -> Any:
            return found

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Given())
    return {family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())}


def test_openmetrics_say_what_the_status_says() -> None:
    """Each figure under its name with its unit; what does not exist is NaN, not a number that looks like one."""
    window = {"auc": None, "calibration": 1.25, "log_loss": 0.3, "served_auc": 0.7, "last_row": 19_999}
    opened = [Alarm(what="drift.loss", state="raised", time_us=1, text="")]
    trainer = families(list(exposition.of_trainer(TRAINER, window, opened, NOW_US)))
    one = {name: family.samples[0].value for name, family in trainer.items() if family.samples}
    assert one["freshet_trainer_examples_learnt"] == 100
    assert trainer["freshet_trainer_examples_learnt"].samples[0].name == "freshet_trainer_examples_learnt_total"
    assert (one["freshet_trainer_newest_version"], one["freshet_trainer_version_age_seconds"]) == (7, 2.0)
    assert one["freshet_trainer_example_age_seconds"] == 0.5
    assert math.isnan(one["freshet_trainer_window_auc"])
    assert (one["freshet_trainer_window_calibration"], one["freshet_trainer_window_served_auc"]) == (1.25, 0.7)
    assert [(s.labels, s.value) for s in trainer["freshet_trainer_alarms_open"].samples] == [({"what": "drift.loss"}, 1)]
    assert {s.labels["quantile"]: s.value for s in trainer["freshet_trainer_click_to_learnt_seconds"].samples} == {
        "0.5": 0.2, "0.99": 0.9,
    }
    joiner = families(list(exposition.of_joiner(JOINER | {"lag": {"0": 5, "1": 0}}, [])))
    assert {s.labels["partition"]: s.value for s in joiner["freshet_joiner_lag_records"].samples} == {"0": 5, "1": 0}
    assert joiner["freshet_joiner_suspect_items"].samples[0].value == 30
    assert math.isnan(joiner["freshet_joiner_join_ratio"].samples[0].value)
    assert families(list(exposition.of_joiner(None, []))).keys() == {"freshet_joiner_alarms_open"}


@pytest.mark.parametrize("wrong", [{"lag_s": 0}, {"version_age_s": 0.5}, {"dead_letter_share": 0}, {"late_share": 1.5}])
def test_thresholds_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    """By name."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        AlarmsConfig(**wrong)
