"""Alarms are raised once, and a resumed run goes on from where its checkpoint was."""

from __future__ import annotations

import copy
import json

import pytest

from spin_composer.alarms.monitor import AlarmMonitor, read_judged
from spin_composer.alarms.rules import (
    ACCURACY,
    ALARMS,
    GENERATED_LENGTH,
    LOGPS_REAL,
    REAL_LENGTH,
    REWARD_GENERATED,
    REWARD_REAL,
    TRUNCATED,
    Judged,
)

CUT = {GENERATED_LENGTH: 20.0, REAL_LENGTH: 20.0, TRUNCATED: 0.9}
WON = {ACCURACY: 1.0, REWARD_REAL: 2.0, REWARD_GENERATED: -2.0, LOGPS_REAL: -40.0}


def started(switches: dict[str, bool] | None = None) -> AlarmMonitor:
    monitor = AlarmMonitor(switches or {})
    assert names(monitor.start_iteration({TRUNCATED: 0.0}, 0, 40, 0.5, False)) == []
    return monitor


def names(alarms) -> list[str]:
    return [alarm.name for alarm in alarms]


def test_an_alarm_is_raised_once_in_a_run() -> None:
    monitor = started({"growing_length": False})
    assert names(monitor.start_iteration(CUT, 1, 40, 0.5, False)) == ["never_stops"]
    assert names(monitor.start_iteration(CUT, 2, 40, 0.5, False)) == []


def test_an_alarm_names_its_iteration_and_its_advice() -> None:
    (alarm,) = AlarmMonitor({}).start_iteration(CUT, 3, 40, 0.5, False)
    assert alarm.iteration == 3
    assert alarm.advice == ALARMS["never_stops"].advice
    assert str(alarm).startswith("alarm never_stops, iteration 3: 90% of the generated responses")


def test_an_alarm_that_is_off_is_not_raised() -> None:
    monitor = AlarmMonitor({"never_stops": False})
    assert monitor.start_iteration(CUT, 0, 40, 0.5, False) == []


def test_batches_are_of_the_iteration_alone() -> None:
    monitor = started()
    assert [a for _ in range(19) for a in monitor.add_batch(WON)] == []
    monitor.close_iteration()
    monitor.start_iteration({TRUNCATED: 0.0}, 1, 40, 0.5, False)
    found = [names(monitor.add_batch(WON)) for _ in range(40)]
    assert found[18:20] == [[], ["high_accuracy"]]
    assert sum(map(len, found)) == 1


def test_a_resumed_monitor_raises_what_one_that_went_on_raises() -> None:
    monitor = started()
    for _ in range(11):
        monitor.add_batch(WON)
    again = AlarmMonitor({})
    again.load_state_dict(copy.deepcopy(monitor.state_dict()))
    again.resume_iteration(0, 40, 0.5, False)
    rest = [[names(one.add_batch(WON)) for _ in range(29)] for one in (monitor, again)]
    assert rest[0] == rest[1]
    assert ["high_accuracy"] in rest[0]
    third = AlarmMonitor({})
    third.load_state_dict(copy.deepcopy(again.state_dict()))
    third.resume_iteration(0, 40, 0.5, False)
    assert third.add_batch(WON) == []


def test_a_state_is_of_plain_types() -> None:
    monitor = started()
    monitor.add_batch(WON)
    monitor.close_iteration()
    assert json.loads(json.dumps(monitor.state_dict()))["margins"] == {"0": 8.0}  # 4 / beta


def test_a_checkpoint_of_an_older_version_has_no_alarms() -> None:
    monitor = AlarmMonitor({})
    monitor.load_state_dict({})
    monitor.resume_iteration(2, 40, 0.5, False)
    assert [names(monitor.add_batch(WON)) for _ in range(20)][-1] == ["high_accuracy"]


def test_a_judge_that_finds_an_iteration_worse_is_heard() -> None:
    monitor = started()
    monitor.add_batch(WON)
    monitor.close_iteration()
    judged = {-1: Judged(0.7, 0.01), 0: Judged(0.8, 0.01)}
    assert names(monitor.add_judged({})) == []
    assert names(monitor.add_judged(judged)) == ["judge_falls"]
    assert names(monitor.add_judged(judged)) == []


def judge_json(**accuracies: float) -> str:
    models = [
        {"name": n.replace("_", "-"), "measures": {"classifier_accuracy": estimate(a)}}
        for n, a in accuracies.items()
    ]
    return json.dumps({"best": None, "models": models})


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value, "high": value, "standard_error": 0.02}


def test_what_a_judge_wrote_is_read_by_iteration() -> None:
    assert read_judged(None) == {}
    found = read_judged(judge_json(start=0.9, iter_000=0.8, iter_001=0.7))
    assert found == {-1: Judged(0.9, 0.02), 0: Judged(0.8, 0.02), 1: Judged(0.7, 0.02)}


def test_an_export_without_an_iterations_number_is_left_out(caplog) -> None:
    found = read_judged(judge_json(start=0.9, ba7=0.8, step_7=0.8, iter_000=0.7))
    assert found == {-1: Judged(0.9, 0.02), 0: Judged(0.7, 0.02)}
    assert caplog.text == ""


@pytest.mark.parametrize("text", ["{", "[]", '{"models": [{}]}', '{"models": [{"name": "x"}]}'])
def test_what_a_judge_wrote_by_halves_is_left_out_and_logged(text: str, caplog) -> None:
    assert read_judged(text) == {}
    assert "judge.json is not readable" in caplog.text
