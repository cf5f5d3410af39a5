"""DITTO's units: of the three kinds, whoever makes them, and after a play that was cut off."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.ranks import on_two_ranks
from fixtures.s3 import BUCKET, S3, s3_server
from fixtures.units import units_of_run
from torch import distributed as dist

from spin_composer.data.pairs import Pair
from spin_composer.errors import StoreError
from spin_composer.pair_kinds import PairKind
from spin_composer.play.degenerate import same_ids
from spin_composer.play.draws import join_unit
from spin_composer.play.lockstep import Lockstep
from spin_composer.play.player import (
    Player,
    PlayReport,
    finish_play,
    make_units,
    run_independently,
)
from spin_composer.settings.spin import SpinSettings
from spin_composer.store.local import LocalStore
from spin_composer.store.object_folder import ObjectFolder
from spin_composer.store.remote import RemoteStore
from tests.play.test_lockstep import forward_of_all
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

SETTINGS = SpinSettings(
    game="ditto", unit_size=4, responses_per_prompt=2,
    ditto={"newest": 0.5, "earlier": 0.3, "between": 0.2},
)  # pyright: ignore  # fmt: skip
UNITS = 4 + 4 + 1
"""Of 13 prompts answered twice: 26 pairs, 16 with earlier responses, 10 joined ones."""


class Counting:
    """Scores by tokens, and counts the pairs that it scored."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.pairs = factor, 0

    def __call__(self, batch: Any) -> Any:
        self.pairs += len(batch["opponent_logps"])
        return self.factor * sums_of_tokens(batch)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, list[PlayReport]]:
    """Three iterations: 0 and 1 scored by tokens, 2 by twice as much."""
    folder = tmp_path_factory.mktemp("ditto")
    player, _ = make_player(folder)
    reports = [run(player, k, SETTINGS) for k in (0, 1)]
    player, _ = make_player(folder, Counting(2.0))
    return LocalStore(folder), [*reports, run(player, 2, SETTINGS)]


def of_kind(pairs: Sequence[Pair], kind: PairKind) -> list[Pair]:
    return [pair for pair in pairs if pair.kind is kind]


def texts(pairs: Sequence[Pair], side: str) -> set[tuple[int, tuple[int, ...]]]:
    return {(pair.index, tuple(getattr(pair, side).tolist())) for pair in pairs}


def test_an_iteration_has_its_kinds_in_the_shares_that_are_set(played: Any) -> None:
    store, reports = played
    assert [unit.kind for unit in reports[0].units] == ["play"] * 4
    for iteration in (1, 2):
        kinds = [unit.kind for unit in reports[iteration].units]
        assert kinds == ["play"] * 4 + ["replay"] * 4 + ["between"]
        rows = stored(store, iteration, UNITS)
        found = [len(of_kind(rows, kind)) for kind in PairKind]
        assert found == [26, 16, 10]
        metrics = reports[iteration].metrics()
        assert (metrics["spin/replayed_pairs"], metrics["spin/between_pairs"]) == (16, 10)
        assert reports[iteration].prompts == 26
    assert "spin/between_pairs" not in reports[0].metrics()


def test_earlier_responses_are_those_of_all_iterations_scored_by_todays_opponent(
    played: Any,
) -> None:
    store, _ = played
    earlier = of_kind(stored(store, 2, UNITS), PairKind.EARLIER)
    before = [of_kind(stored(store, k, 4), PairKind.NEWEST) for k in (0, 1)]
    assert texts(earlier, "generated") <= texts(before[0] + before[1], "generated")
    assert all(texts(earlier, "generated") & texts(of_one, "generated") for of_one in before)
    examples = make_player(store.root)[0].examples
    for pair in earlier:
        assert pair.real.tolist() == examples[pair.index].response.tolist()
        assert pair.opponent_real == -2 * pair.real.sum()
        assert pair.opponent_generated == -2 * pair.generated.sum()


def test_joined_pairs_have_the_scores_of_both_and_cost_no_forward_pass(
    played: Any, tmp_path: Path
) -> None:
    store, _ = played
    rows = stored(store, 2, UNITS)
    between = of_kind(rows, PairKind.BETWEEN)
    assert texts(between, "real") <= texts(of_kind(rows, PairKind.NEWEST), "generated")
    assert texts(between, "generated") <= texts(of_kind(rows, PairKind.EARLIER), "generated")
    for pair in between:
        assert pair.opponent_real == -2 * pair.real.sum()
        assert pair.opponent_generated == -2 * pair.generated.sum()
        for side, finish in ((pair.real, pair.finish_better), (pair.generated, pair.finish)):
            assert (side[-1] == 0) == (finish == 0)  # the stop token and the finish reason
    shutil.copytree(store.root, tmp_path / "store")
    shutil.rmtree(LocalStore(tmp_path / "store").unit_folder(2, UNITS - 1))
    score = Counting()
    player, engine = make_player(tmp_path / "store", score)
    run(player, 2, SETTINGS)
    assert (score.pairs, engine.seeds) == (0, [])
    assert content(stored(player.store, 2, UNITS)) == content(rows)


@pytest.mark.parametrize("last", range(4, UNITS))
def test_a_play_that_was_cut_off_goes_on_to_the_same_units(
    played: Any, last: int, tmp_path: Path
) -> None:
    store, _ = played
    shutil.copytree(store.root, tmp_path / "store")
    cut = LocalStore(tmp_path / "store")
    for unit in range(last, UNITS):
        shutil.rmtree(cut.unit_folder(1, unit))
    shutil.rmtree(cut.unit_folder(1, 2))
    player, _ = make_player(cut.root)
    run(player, 1, SETTINGS)
    for wanted, found in zip(stored(store, 1, UNITS), stored(cut, 1, UNITS), strict=True):
        assert content([wanted]) == content([found])
        assert wanted.kind is found.kind
        assert (wanted.opponent_real, wanted.finish_better) == (
            found.opponent_real,
            found.finish_better,
        )


def test_units_are_read_beside_those_without_kinds(played: Any, tmp_path: Path) -> None:
    from streaming import StreamingDataset

    from spin_composer.store.unit import pair_from_sample

    store, reports = played
    shutil.copytree(store.folder(1), tmp_path / "iter-001")
    assert LocalStore(tmp_path).merge(1, UNITS) == reports[1].pairs == 52
    dataset = StreamingDataset(local=str(tmp_path / "iter-001/units"), batch_size=1)
    found = [pair_from_sample(dataset[i]) for i in range(52)]  # pyright: ignore
    assert content(found) == content(stored(store, 1, UNITS))
    assert [p.kind for p in found] == [p.kind for p in stored(store, 1, UNITS)]


def test_a_damaged_earlier_unit_stops_the_draw(played: Any, tmp_path: Path) -> None:
    store, _ = played
    shutil.copytree(store.folder(0), tmp_path / "iter-000")
    player, engine = make_player(tmp_path)
    shard = next(player.store.unit_folder(0, 3).glob("shard.*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(StoreError, match="is damaged"):
        run(player, 1, SETTINGS)
    assert engine.seeds == []


# --- several ranks ----------------------------------------------------------------------------


def play_on_rank(rank: int, folder: str, in_step: bool) -> list[int]:
    player, _ = make_player(Path(folder), forward_of_all if in_step else sums_of_tokens)
    schedule = Lockstep(lambda tensor: tensor, lambda: None) if in_step else run_independently
    pairs = []
    for iteration in (0, 1):
        units = units_of_run(SETTINGS, SEED, iteration, NUM_EXAMPLES)
        if rank == 0:
            manifest = {"iteration": iteration, "generation": {"max_new_tokens": 9}}
            player.store.open_iteration(manifest)
        dist.barrier()
        make_units(player, plan_for(player.store, iteration, units), schedule)
        pairs.append(finish_play(player.store, iteration, len(units)).pairs)
    return pairs


@pytest.mark.parametrize("in_step", [False, True], ids=["independently", "in rounds"])
def test_two_ranks_make_the_store_of_one(played: Any, in_step: bool, tmp_path: Path) -> None:
    store, _ = played
    found = on_two_ranks(play_on_rank, folder=str(tmp_path), in_step=in_step)
    assert found == {0: [26, 52], 1: [26, 52]}
    two = LocalStore(tmp_path)
    for iteration, units in ((0, 4), (1, UNITS)):
        wanted = stored(store, iteration, units)
        assert content(stored(two, iteration, units)) == content(wanted)
        assert [p.kind for p in stored(two, iteration, units)] == [p.kind for p in wanted]
        assert [p.opponent_real for p in stored(two, iteration, units)] == [
            p.opponent_real for p in wanted
        ]


# --- an object store --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Any:
    with s3_server() as server:
        yield server


def remote_player(folder: Path) -> Player:
    player, _ = make_player(folder)
    store = RemoteStore(folder, ObjectFolder(f"s3://{BUCKET}/ditto/self-play"))
    return replace(player, store=store)


def test_another_node_joins_what_the_first_one_made(
    played: Any, server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = played
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    one, other = remote_player(tmp_path / "one"), remote_player(tmp_path / "other")
    run(one, 0, SETTINGS)
    units = units_of_run(SETTINGS, SEED, 1, NUM_EXAMPLES)
    one.store.open_iteration({"iteration": 1, "generation": {"max_new_tokens": 9}})
    for index, unit in enumerate(units[:6]):  # and is killed
        one.make(1, index, unit)
    make_units(other, plan_for(other.store, 1, units))
    before = other.store.select_attempts(1, UNITS - 1, "")
    assert finish_play(other.store, 1, UNITS).pairs == 52
    assert other.store.select_attempts(1, UNITS, "")[: UNITS - 1] == before
    assert content(stored(other.store, 1, UNITS)) == content(stored(store, 1, UNITS))


def test_a_join_is_a_function_of_the_units_alone(played: Any) -> None:
    store, _ = played
    (*_, unit) = units_of_run(SETTINGS, SEED, 1, NUM_EXAMPLES)
    joined = join_unit(store, SEED, 1, unit, same_ids)  # type: ignore[arg-type]
    assert content(joined) == content(of_kind(stored(store, 1, UNITS), PairKind.BETWEEN))
