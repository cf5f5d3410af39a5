"""The line of a run's start: its phases are its whole time, and rank 0 prints it once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.runs import tiny_trainer

from spin_composer import startup
from spin_composer.startup import StartClock

LINE = re.compile(r"SPIN start: ([\d.]+) s to the first batch: (.+)")


def parse(line: str) -> tuple[float, dict[str, float]]:
    """Return the total and the phases of a line."""
    found = LINE.fullmatch(line)
    assert found, line
    parts = (part.rsplit(" ", 1) for part in found[2].split(", "))
    return float(found[1]), {name: float(seconds) for name, seconds in parts}


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def new_process() -> Iterator[None]:
    """A clock as in a process that has reached no first batch."""
    startup.process_clock.cache_clear()
    yield
    startup.process_clock.cache_clear()


def test_phases_are_what_passed_in_each_and_sum_to_the_total():
    time = Time()
    clock = StartClock(started=90.0, clock=time)
    time.now += 2.0
    clock.rename_all("imports")
    time.now += 1.26
    clock.begin("Trainer")
    with clock.within("rows"):
        time.now += 3.0
        with clock.within("checks"):
            time.now += 0.26
    time.now += 0.26
    clock.begin("play")
    total, phases = parse(clock.stop())
    assert total == 16.8
    assert list(phases) == ["imports", "rows", "Trainer", "checks"]
    assert phases["rows"] == 3.0
    assert phases["imports"] == pytest.approx(13.26, abs=0.1)


@pytest.mark.parametrize("step", [0.04, 0.049, 0.05, 0.051, 0.096, 1 / 3, 7.77])
def test_shown_phases_sum_to_the_shown_total_however_they_are_rounded(step: float):
    time = Time()
    clock = StartClock(started=100.0, clock=time)
    for i, phase in enumerate(("imports", "rows", "model", "Trainer", "play", "first batch")):
        clock.begin(phase)
        time.now += step * (1 + i % 2)
    total, phases = parse(clock.stop())
    assert sum(phases.values()) == pytest.approx(total, abs=1e-9)
    assert total == pytest.approx(9 * step, abs=0.05 + 1e-9)


def test_the_clock_of_a_process_begins_with_it(new_process):
    total, phases = parse(startup.process_clock().stop())
    assert phases == {"the program before": total}  # this test's, which imports torch


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("SPIN start")]


def test_rank_0_prints_once_and_the_others_nothing(new_process, capsys):
    startup.first_batch_reached(is_rank_zero=True)
    startup.first_batch_reached(is_rank_zero=True)
    assert len(printed(capsys)) == 1
    startup.process_clock.cache_clear()
    startup.first_batch_reached(is_rank_zero=False)
    assert not printed(capsys)


def test_a_run_and_a_resumed_run_say_where_their_start_went(new_process, capsys, tmp_path: Path):
    saving = {"save_folder": str(tmp_path / "checkpoints"), "save_interval": "1ba"}
    trainer = tiny_trainer(tmp_path, **saving, save_filename="ba{batch}.pt", max_duration="1iter")
    trainer.fit()
    (line,) = printed(capsys)
    total, phases = parse(line)
    assert sum(phases.values()) == pytest.approx(total)
    assert "play" in startup.process_clock().phases
    startup.process_clock.cache_clear()
    tiny_trainer(tmp_path, load_path=f"{saving['save_folder']}/ba2.pt", max_duration="1iter").fit()
    (line,) = printed(capsys)
    total, phases = parse(line)
    assert sum(phases.values()) == pytest.approx(total)
    measured = startup.process_clock().phases
    assert {"the program before", "rows", "Trainer", "checks", "checkpoint", "store"} <= measured
    assert "play" not in measured
