"""When the run ends is told as an iteration starts, by the whole iterations before."""

from __future__ import annotations

import io
import re
from datetime import datetime
from pathlib import Path

import pytest
from fixtures.runs import tiny_trainer

from spin_composer.hooks.time_left import TimeLeft


def lines(starts: list[float], first: int, earlier_play: float = 0.0) -> list[str]:
    """Return what is printed of a run of five iterations that start at these seconds."""
    out, clock = io.StringIO(), iter(starts)
    left = TimeLeft(lambda: next(clock), out)
    left.num_iterations = 5
    for number in range(len(starts)):
        left.start_iteration(first + number)
        left.add_earlier_play(earlier_play if number == 0 else 0.0)
    return out.getvalue().splitlines()


def test_the_mean_of_the_iterations_before_times_those_that_are_left_is_told() -> None:
    assert lines([0.0], first=0) == []  # none is whole yet
    found = [line.rsplit(", ")[1] for line in lines([50.0, 150.0, 350.0], first=0)]
    assert found == ["06:40 left", "07:30 left"]  # 4 of 100 s, 3 of 150 s


def test_a_resumed_process_counts_its_own_iterations_and_the_play_made_before_it() -> None:
    assert lines([9.0], first=3) == []
    (line,) = lines([9.0, 109.0], first=3, earlier_play=60.0)
    assert line.startswith("iteration 4: the run ends at about ")
    assert line.endswith(", 02:40 left")


def test_the_day_is_named_where_it_is_another_one() -> None:
    now = datetime(2026, 11, 29, 22, 0)
    assert TimeLeft.text(5400, now) == "the run ends at about 23:30, 1:30:00 left"
    assert TimeLeft.text(9000, now) == "the run ends at about 2026-11-30 00:30, 2:30:00 left"


def test_a_run_tells_it_once_for_each_iteration_after_the_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = tiny_trainer(tmp_path, max_duration="3iter", spin={"iteration_length": "1ep"})
    trainer.fit()
    trainer.close()
    told = re.findall(
        r"^iteration (\d): the run ends at about [-:\d ]+, [:\d]+ left$",
        capfd.readouterr().err,
        re.MULTILINE,
    )
    assert told == ["1", "2"]
