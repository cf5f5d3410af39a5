"""Each alarm is raised by figures that have its fault, and by no others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from spin_composer.alarms.rules import (
    ACCURACY,
    ALARMS,
    DISTINCT_GENERATED,
    DISTINCT_REAL,
    FIRST_TOKEN_GAP,
    FIRST_WORDS_SHARED,
    GENERATED_LENGTH,
    LOGPS_REAL,
    REAL_LENGTH,
    REAL_LOGP,
    REWARD_GENERATED,
    REWARD_REAL,
    TRUNCATED,
    Judged,
    Moment,
    RunFigures,
    register_alarm,
)

NUM_BATCHES = 80


def of_batches(real: float, generated: float, accuracy: float = 0.7, **more: Any) -> RunFigures:
    """A run in whose iteration every batch has the same figures; real responses have -40 nats."""
    beta = more.get("beta", 1.0)
    batch = {
        ACCURACY: accuracy,
        REWARD_REAL: beta * real,
        REWARD_GENERATED: beta * generated,
        LOGPS_REAL: -40.0 + real,
    }
    count = more.pop("count", NUM_BATCHES)
    return RunFigures(batches=[batch] * count, num_batches=NUM_BATCHES, **more)


def of_plays(*plays: dict[str, float]) -> RunFigures:
    return RunFigures(plays=plays)


def play(length: float = 20.0, truncated: float = 0.01, **more: float) -> dict[str, float]:
    return {GENERATED_LENGTH: length, TRUNCATED: truncated, REAL_LENGTH: 20.0, **more}


def begins(gap: float, shared: float) -> dict[str, float]:
    return play(**{FIRST_TOKEN_GAP: gap, FIRST_WORDS_SHARED: shared})


def diverse(generated: float, real: float = 0.5) -> dict[str, float]:
    return play(**{DISTINCT_GENERATED: generated, DISTINCT_REAL: real})


def judged(*accuracies: float, margins: tuple[float, ...]) -> RunFigures:
    """Accuracy of the judge's classifier at the start and after each iteration."""
    found = {k: Judged(accuracy, 0.01) for k, accuracy in enumerate(accuracies, start=-1)}
    return RunFigures(judged=found, margins=dict(enumerate(margins)))


FAULTY: list[tuple[str, RunFigures]] = [
    ("falling_logps", of_batches(real=-3.0, generated=-20.0)),
    ("falling_logps", of_batches(real=-3.0, generated=-20.0, beta=5.0)),
    ("falling_logps", of_batches(real=-3.0, generated=-20.0, count=NUM_BATCHES // 4)),
    ("high_accuracy", of_batches(real=5.0, generated=-5.0, accuracy=0.99)),
    ("high_accuracy", of_batches(real=5.0, generated=-5.0, accuracy=1.0, count=NUM_BATCHES // 2)),
    ("never_stops", of_plays(play(truncated=0.6))),
    ("never_stops", of_plays(play(), play(truncated=1.0))),
    ("growing_length", of_plays(play(20.0), play(24.0), play(31.0))),
    ("growing_length", of_plays(play(truncated=0.01), play(truncated=0.2))),
    ("first_token_gap", of_plays(begins(gap=0.98, shared=0.6))),
    ("first_token_gap", of_plays(begins(0.0, 0.6), begins(0.7, 0.2))),
    ("low_diversity", of_plays(diverse(0.45), diverse(0.4), diverse(0.25))),
    ("low_diversity", of_plays(diverse(0.8), diverse(0.3))),
    ("judge_falls", judged(0.7, 0.8, margins=(1.0,))),
    ("judge_falls", judged(0.7, 0.6, 0.65, margins=(1.0, 2.0))),
]
SOUND: list[tuple[str, RunFigures]] = [
    ("falling_logps", of_batches(real=2.0, generated=-20.0)),
    ("falling_logps", of_batches(real=-1.0, generated=-20.0)),  # within what batches differ by
    ("falling_logps", of_batches(real=-3.0, generated=1.0)),
    ("falling_logps", of_batches(real=-3.0, generated=-20.0, count=19)),
    ("high_accuracy", of_batches(real=5.0, generated=-5.0, accuracy=0.95)),
    ("high_accuracy", of_batches(real=5.0, generated=-5.0, accuracy=1.0, count=39)),
    ("never_stops", of_plays(play(truncated=1.0), play(truncated=0.3))),  # no longer
    ("growing_length", of_plays(play(100.0))),
    ("growing_length", of_plays(play(10.0), play(20.0))),  # toward the real ones
    ("growing_length", of_plays(play(20.0), play(24.0))),
    ("growing_length", of_plays(play(truncated=0.2), play(truncated=0.01))),
    ("first_token_gap", of_plays(begins(gap=0.2, shared=0.6))),
    ("first_token_gap", of_plays(begins(gap=1.0, shared=0.02))),  # other words
    ("low_diversity", of_plays(diverse(0.1))),
    ("low_diversity", of_plays(diverse(0.8), diverse(0.5))),  # down to the real ones
    ("low_diversity", of_plays(diverse(0.4, real=0.5), diverse(0.2, real=0.25))),  # other prompts
    ("judge_falls", judged(0.7, 0.6, 0.55, margins=(1.0, 2.0))),
    ("judge_falls", judged(0.7, 0.6, 0.61, margins=(1.0, 2.0))),  # by chance
    ("judge_falls", judged(0.6, 0.5, 0.7, margins=(2.0, 1.0))),
    ("judge_falls", judged(0.44, 0.51, margins=(1.0,))),  # both are chance
    ("judge_falls", RunFigures(margins={0: 1.0, 1: 2.0})),
]


@pytest.mark.parametrize(("name", "run"), FAULTY)
def test_a_fault_is_found_with_its_figures(name: str, run: RunFigures) -> None:
    finding = ALARMS[name].rule(run)
    assert finding is not None
    assert any(letter.isdigit() for letter in finding)
    assert not finding.endswith(".")


@pytest.mark.parametrize(("name", "run"), SOUND)
def test_a_sound_run_raises_nothing(name: str, run: RunFigures) -> None:
    assert ALARMS[name].rule(run) is None


def test_a_run_of_which_nothing_is_known_raises_nothing() -> None:
    nan = dict.fromkeys((*begins(1.0, 1.0), *diverse(0.1), ACCURACY, REWARD_REAL), math.nan)
    for run in (
        RunFigures(plays=[{}, {}]),
        RunFigures(plays=[nan, nan], batches=[nan] * NUM_BATCHES, num_batches=NUM_BATCHES),
    ):
        assert [name for name, alarm in ALARMS.items() if alarm.rule(run)] == []


def test_rewards_per_token_are_compared_with_log_probs_per_token() -> None:
    per_token = {"per_token": True, "plays": [play(**{REAL_LOGP: -2.0})]}
    run = of_batches(real=-0.2, generated=-1.0, **per_token)
    assert ALARMS["falling_logps"].rule(run) is not None
    sound = of_batches(real=-0.05, generated=-1.0, **per_token)
    assert ALARMS["falling_logps"].rule(sound) is None


def test_short_unlikely_responses_beside_long_ones_make_no_fall_per_token() -> None:
    """Two tokens at -5 nats and 200 at -0.5, all 1% less likely: each response's own share counts.

    By the sums' means it would be 5%: the long responses' tokens outnumber the short ones'.
    """
    opponent = (-5.0 - 0.5) / 2
    lengths, sums = (2 + 200) / 2, (-10.0 - 100.0) / 2
    assert 0.01 * opponent < 0.05 * sums / lengths
    plays = [play(**{REAL_LOGP: opponent, REAL_LENGTH: lengths})]
    run = of_batches(real=0.01 * opponent, generated=-1.0, per_token=True, plays=plays)
    run = replace(run, batches=[{**one, LOGPS_REAL: 1.01 * sums} for one in run.batches])
    assert ALARMS["falling_logps"].rule(run) is None


def test_each_alarm_has_advice_in_full_sentences() -> None:
    for alarm in ALARMS.values():
        assert alarm.advice.endswith(".")
        assert alarm.advice[0].isupper()


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'never_stops' is registered already"):
        register_alarm("never_stops", Moment.PLAY, "")(lambda run: None)
