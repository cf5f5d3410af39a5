"""Play in rounds: ranks score in step, whatever each has to do, and learn of each other's failure.

Each forward of these tests is a collective, as FSDP's is: ranks that did not make the same number
of them would hang, or mix up one's with another's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.ranks import on_two_ranks
from fixtures.units import units_of_run
from torch import distributed as dist

from spin_composer.data.pairs import STOP
from spin_composer.engines.base import Response
from spin_composer.play.lockstep import Lockstep
from spin_composer.play.player import Player, finish_play, make_units
from spin_composer.settings.spin import SpinSettings
from spin_composer.store.local import LocalStore
from spin_composer.store.unit import UnitReport
from tests.play.test_player import (
    NUM_EXAMPLES,
    SEED,
    content,
    make_player,
    plan_for,
    run,
    stored,
    sums_of_tokens,
)

SETTINGS = SpinSettings(unit_size=4)  # units of 4, 4, 4 and 1 of 13 prompts


def forward_of_all(batch: dict[str, Any]) -> torch.Tensor:
    together = torch.ones(1)
    dist.all_reduce(together)
    assert float(together) == dist.get_world_size()
    return sums_of_tokens(batch)


def player_in(
    folder: Path, score: Callable[[dict[str, Any]], torch.Tensor] = forward_of_all
) -> tuple[Player, Lockstep, list[int]]:
    player, _ = make_player(folder, score)
    freed: list[int] = []
    return player, Lockstep(lambda tensor: tensor, lambda: freed.append(1)), freed


def open_and_play(player: Player, rounds: Lockstep, iteration: int, count: int) -> Any:
    """Play the first ``count`` units of an iteration on all ranks."""
    units = units_of_run(SETTINGS, SEED, iteration, NUM_EXAMPLES)[:count]
    if dist.get_rank() == 0:
        player.store.open_iteration({"iteration": iteration, "num_units": len(units)})
    dist.barrier()
    make_units(player, plan_for(player.store, iteration, units), rounds)
    return finish_play(player.store, iteration, len(units))


class Broken(Exception):
    """What a rank of these tests fails with."""


def failing_engine(player: Player) -> Player:
    def generate(prompts: Any, seed: int, *_: Any) -> list[Response]:
        raise Broken("the server is gone")

    player.generator.generate = generate
    return player


def failing_collate(player: Player) -> Player:
    """Fail between two forwards: a response without tokens."""
    generate = player.generator.generate

    def empty(prompts: Any, seed: int, *_: Any) -> list[Response]:
        return [*generate(prompts, seed)[:-1], Response(np.zeros(0, np.int32), STOP)]

    player.generator.generate = empty
    return player


def failing_commit(player: Player) -> Player:
    def commit_unit(*_: Any) -> UnitReport:
        raise OSError(28, "No space left on device")

    player.store.commit_unit = commit_unit  # pyright: ignore
    return player


def on_rank(rank: int, folder: str) -> dict[Any, Any]:
    results: dict[Any, Any] = {}
    for count in (1, 3, 4):  # a rank with nothing to do; uneven; rounds that are full
        player, rounds, freed = player_in(Path(folder) / f"units-{count}")
        report = open_and_play(player, rounds, 0, count)
        results[count] = (report.prompts, len(freed))
    player, rounds, _ = player_in(Path(folder) / "units-4")
    results["replay"] = open_and_play(player, rounds, 1, 8).metrics()["spin/replayed_pairs"]
    for fail in (failing_engine, failing_collate, failing_commit):
        player, rounds, _ = player_in(Path(folder) / fail.__name__)
        if rank == 1:
            player = fail(player)
        try:
            open_and_play(player, rounds, 0, 4)
        except Exception as error:
            results[fail.__name__] = f"{type(error).__name__}: {error}"
        dist.barrier()  # no collective of play is left over
    return results


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    folder = tmp_path_factory.mktemp("rounds")
    return folder, on_two_ranks(on_rank, folder=str(folder))


def test_uneven_units_and_idle_ranks_make_the_store_of_one_rank(
    played: Any, tmp_path: Path
) -> None:
    folder, results = played
    alone, _ = make_player(tmp_path)
    run(alone)
    for count, prompts in ((1, 4), (3, 12), (4, 13)):
        store = LocalStore(folder / f"units-{count}")
        wanted, found = stored(alone.store, 0, count), stored(store, 0, count)
        assert content(found) == content(wanted)
        assert [r.opponent_real for r in found] == [r.opponent_real for r in wanted]
        # What a forward leaves gathered is freed once a round, on a rank without a unit too.
        assert results[0][count] == results[1][count] == (prompts, -(-count // 2))


def test_replayed_units_are_rescored_in_step(played: Any) -> None:
    _, results = played
    assert results[0]["replay"] == results[1]["replay"] == 13


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (failing_engine, "the server is gone"),
        (failing_collate, "a pair needs a prompt and two responses of at least one token"),
        (failing_commit, "No space left on device"),
    ],
)
def test_a_rank_that_fails_ends_the_other_with_its_error(
    played: Any, fail: Callable[..., Any], said: str
) -> None:
    _, results = played
    assert said in results[1][fail.__name__]
    assert "rank 1 failed in play" in results[0][fail.__name__]
    assert said in results[0][fail.__name__]


def test_one_process_alone_plays_in_rounds_too(tmp_path: Path) -> None:
    player, _ = make_player(tmp_path / "one", score=sums_of_tokens)
    units = units_of_run(SETTINGS, SEED, 0, NUM_EXAMPLES)
    player.store.open_iteration({"iteration": 0, "num_units": len(units)})
    rounds = Lockstep(lambda tensor: tensor, lambda: None)
    make_units(player, plan_for(player.store, 0, units), rounds)
    report = finish_play(player.store, 0, len(units))
    alone, _ = make_player(tmp_path / "other")
    run(alone)
    assert report.pairs == 13
    assert content(stored(player.store, 0, 4)) == content(stored(alone.store, 0, 4))
