"""The next unit's prompts are answered while one is scored: nothing of the store is another's."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.units import units_of_run

from spin_composer import interrupt
from spin_composer.engines.base import OnProgress, Response, ignore_progress
from spin_composer.errors import StoreError
from spin_composer.play.ahead import DraftAhead, run_ahead
from spin_composer.play.lockstep import Lockstep
from spin_composer.play.plan import unit_seed
from spin_composer.play.player import Player, Schedule, finish_play, make_units
from spin_composer.settings.spin import SpinSettings
from tests.play.test_player import (
    NUM_EXAMPLES,
    SEED,
    CountingGenerator,
    content,
    make_player,
    plan_for,
    run,
    stored,
    sums_of_tokens,
)

SETTINGS = SpinSettings(unit_size=4)  # units of 4, 4, 4 and 1 of 13 prompts
LONG = 60.0
"""Seconds that a test waits for what must happen; only a failing one waits so long."""
SCHEDULES: dict[str, Schedule] = {
    "independent": run_ahead,
    "lockstep": Lockstep(lambda tensor: tensor, lambda: None),
}


def play(player: Player, schedule: Schedule, iteration: int = 0, replayed: bool = False) -> Any:
    settings = SpinSettings(unit_size=4, replay=1) if replayed else SETTINGS
    units = units_of_run(settings, SEED, iteration, NUM_EXAMPLES)
    player.store.open_iteration({"iteration": iteration, "num_units": len(units)})
    make_units(player, plan_for(player.store, iteration, units), schedule)
    return finish_play(player.store, iteration, len(units))


class Watched(CountingGenerator):
    """Tells what it is asked; ``answer`` is called with the unit's number before it answers."""

    def __init__(self, inner: CountingGenerator, answer: Callable[[int, OnProgress], None]):
        super().__init__(inner.examples)
        self.answer = answer
        self.asked = [threading.Event() for _ in range(4)]

    def generate(
        self, prompts: Sequence[np.ndarray], seed: int, on_progress: OnProgress = ignore_progress
    ) -> list[Response]:
        unit = len(self.seeds)
        self.asked[unit].set()
        self.answer(unit, on_progress)
        return super().generate(prompts, seed)


def watched(
    folder: Path,
    answer: Callable[[int, OnProgress], None] = lambda unit, told: None,
    score: Callable[[Any], Any] = sums_of_tokens,
) -> tuple[Player, Watched]:
    player, inner = make_player(folder, score)
    generator = Watched(inner, answer)
    return replace(player, generator=generator), generator


@pytest.fixture(params=SCHEDULES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]


def test_the_store_is_that_of_one_unit_after_another(schedule: Schedule, tmp_path: Path) -> None:
    one, engine = make_player(tmp_path / "one")
    run(one)
    other, watcher = watched(tmp_path / "other")
    report = play(other, schedule)
    assert watcher.seeds == engine.seeds == [unit_seed(SEED, 0, unit) for unit in range(4)]
    assert content(stored(other.store, 0, 4)) == content(stored(one.store, 0, 4))
    assert report.prompts == NUM_EXAMPLES


def test_replayed_units_are_rescored_after_the_played_ones(
    schedule: Schedule, tmp_path: Path
) -> None:
    player, _ = watched(tmp_path)
    play(player, schedule)
    report = play(replace(player, generator=make_player(tmp_path)[1]), schedule, 1, replayed=True)
    assert report.metrics()["spin/replayed_pairs"] == NUM_EXAMPLES


def test_prompts_are_answered_while_the_unit_before_is_scored(
    schedule: Schedule, tmp_path: Path
) -> None:
    order: list[int] = []

    def score(batch: Any) -> Any:
        following = len(order) + 1
        assert following == 4 or generator.asked[following].wait(LONG)
        assert following >= 3 or not generator.asked[following + 1].is_set()  # one ahead, not two
        return sums_of_tokens(batch)

    player, generator = watched(tmp_path, score=score)
    commit = player.store.commit_unit

    def commit_unit(iteration: int, unit: int, *what: Any) -> None:
        order.append(unit)
        commit(iteration, unit, *what)

    player.store.commit_unit = commit_unit  # pyright: ignore
    play(player, schedule)
    assert order == [0, 1, 2, 3]


def test_a_unit_that_was_answered_is_stored_though_the_next_fails(
    schedule: Schedule, tmp_path: Path
) -> None:
    def answer(unit: int, told: OnProgress) -> None:
        if unit == 2:
            raise OSError("the server is gone")

    player, _ = watched(tmp_path, answer)
    with pytest.raises(OSError, match="the server is gone"):
        play(player, schedule)
    assert player.store.complete_units(0) == {0, 1}


def test_what_fails_ends_the_answering_of_the_next_unit(schedule: Schedule, tmp_path: Path) -> None:
    ended = threading.Event()

    def answer(unit: int, told: OnProgress) -> None:
        if unit == 1:
            try:
                while True:  # as a server that takes its time
                    told(0, 0)
            finally:
                ended.set()

    def score(batch: Any) -> Any:
        assert generator.asked[1].wait(LONG)
        raise ValueError("broken weights")

    player, generator = watched(tmp_path, answer, score)
    with pytest.raises(ValueError, match="broken weights"):
        play(player, schedule)
    assert ended.is_set()
    assert player.store.complete_units(0) == set()


def test_the_failure_of_another_rank_ends_the_wait_for_a_server(tmp_path: Path) -> None:
    def answer(unit: int, told: OnProgress) -> None:
        while True:
            told(0, 0)

    def check() -> None:
        if generator.asked[0].is_set():
            raise StoreError("rank 1 failed in play")

    player, generator = watched(tmp_path, answer)
    units = units_of_run(SETTINGS, SEED, 0, NUM_EXAMPLES)
    with (
        pytest.raises(StoreError, match="rank 1 failed"), DraftAhead(player, 0, check) as ahead
    ):  # fmt: skip
        ahead.start((0, units[0]))()


def test_a_play_that_fails_between_units_answers_no_more(tmp_path: Path) -> None:
    ended = threading.Event()
    stored: list[int] = []

    def answer(unit: int, told: OnProgress) -> None:
        if unit == 1:
            try:
                while True:
                    told(0, 0)
            finally:
                ended.set()

    def verify_lock() -> None:
        if player.store.complete_units(0):
            stored.append(1)
            raise StoreError("another run has taken the store over")

    player, _ = watched(tmp_path, answer)
    with pytest.raises(StoreError, match="another run") as failure:
        play(replace(player, verify_lock=verify_lock), run_ahead)
    assert failure.traceback, "which keeps the frames, and the schedule with them"
    assert ended.is_set()
    assert stored


def test_a_signal_ends_the_wait_for_a_server(schedule: Schedule, tmp_path: Path) -> None:
    def answer(unit: int, told: OnProgress) -> None:
        interrupt.record_signal(signal.SIGTERM)
        while True:
            interrupt.check()  # as generators do; it is the main thread's to stop
            told(0, 0)

    player, _ = watched(tmp_path, answer)
    try:
        with pytest.raises(interrupt.Interrupted):
            play(player, schedule)
    finally:
        interrupt.uninstall()
