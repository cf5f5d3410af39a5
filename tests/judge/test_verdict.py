"""An iteration helps if its responses are told less easily, and nothing else became worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spin_composer.judge.estimate import Bootstrap
from spin_composer.judge.measures import Measures
from spin_composer.judge.verdict import decide

PROMPTS = 200
BOOTSTRAP = Bootstrap(np.arange(PROMPTS), resamples=300)


def measures(accuracy: float, **means: float) -> Measures:
    """Return measures whose values differ from prompt to prompt, in the same way for each model."""
    spread = np.linspace(-1, 1, PROMPTS)
    hits = (np.random.default_rng(0).permutation(PROMPTS) < accuracy * PROMPTS).astype(float)
    found: dict[str, Any] = {"classifier_accuracy": BOOTSTRAP.mean(hits)}
    others = ("classifier_control", "distinct_1", "real_distinct_1", "distinct_2")
    others += ("real_distinct_2", "self_bleu", "real_self_bleu")
    found |= dict.fromkeys(others, BOOTSTRAP.mean(spread))
    found |= {name: BOOTSTRAP.mean(mean + spread) for name, mean in means.items()}
    return Measures(**found)


START = measures(0.9, nll=1.0, stop_rate=0.9)


def test_responses_that_are_told_less_easily_help():
    verdict = decide(START, [measures(0.7, nll=1.0, stop_rate=0.9)])
    assert verdict.helped == (True,)
    assert verdict.best == 0
    assert verdict.since_best == 0
    assert verdict.reasons[0].startswith("the classifier tells its responses less easily (0.900 ->")


def test_a_policy_that_is_the_start_does_not_help():
    verdict = decide(START, [START, START])
    assert verdict.helped == (False, False)
    assert verdict.best is None
    assert verdict.since_best == 2


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"nll": 1.1, "stop_rate": 0.9}, "nll is worse than at the start"),
        ({"nll": 0.9, "stop_rate": 0.8}, "stop_rate is worse than at the start"),
    ],
)
def test_what_the_classifier_does_not_see_may_not_become_worse(other: Any, reason: str):
    verdict = decide(START, [measures(0.7, **other)])
    assert verdict.best is None
    assert reason in verdict.reasons[0]


def test_responses_that_are_told_more_easily_do_not_help():
    verdict = decide(START, [measures(1.0, nll=0.5, stop_rate=1.0)])
    assert verdict.helped == (False,)
    assert "more easily" in verdict.reasons[0]


def test_each_iteration_is_compared_with_the_best_before_it():
    given = [measures(a, nll=1.0, stop_rate=0.9) for a in (0.8, 0.85, 0.79, 0.6, 0.6)]
    verdict = decide(START, given)
    assert verdict.helped == (True, False, False, True, False)
    assert verdict.best == 3
    assert verdict.since_best == 1


def test_a_start_that_cannot_be_told_from_the_data_cannot_be_bettered():
    # 0.4 is not farther from 0.5 than chance brings it
    verdict = decide(measures(0.5, nll=1.0), [measures(0.4, nll=1.0)])
    assert verdict.best is None
