from __future__ import annotations

import pytest

from spin_composer.report.time_spent import time_spent


def test_the_rest_of_an_iterations_time_is_what_play_left() -> None:
    first = {"iteration": 0, "spin/play_seconds": 10.0, "play_time_share": 0.25}
    second = {"iteration": 1, "spin/play_seconds": 20.0, "play_time_share": 0.3}
    found = time_spent([first, second])
    assert [one.play for one in found] == [10.0, 20.0]
    assert found[0].rest == pytest.approx(40 - 10)
    assert found[1].rest == pytest.approx(100 - 40 - 20)


def test_what_an_older_history_lacks_is_not_there() -> None:
    (found,) = time_spent([{"iteration": 0}])
    assert (found.play, found.generation, found.rest) == (None, None, None)
