"""Playing an iteration: units are made once, hold what they should, and are scored as they must."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.units import missing_units, units_of_run

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.pairs import LENGTH, STOP, Pair
from spin_composer.engines.base import NoGenerator, OnProgress, Response, ignore_progress
from spin_composer.errors import StoreError
from spin_composer.play.iteration import IterationPlan
from spin_composer.play.plan import Unit
from spin_composer.play.player import Player, PlayReport, finish_play, make_units
from spin_composer.play.prepare import check_iteration
from spin_composer.settings.spin import SpinSettings
from spin_composer.store import local
from spin_composer.store.local import LocalStore
from spin_composer.store.unit import unit_problem

NUM_EXAMPLES, STOP_ID, SEED = 13, 0, 5
SETTINGS = SpinSettings(unit_size=4)  # units of 4, 4, 4 and 1


def make_examples() -> ExampleDataset:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(NUM_EXAMPLES):
        prompt = np.array([100 + i, *rng.integers(1, 9, i % 3)], np.int32)
        rows.append(Example(prompt, np.array([*rng.integers(1, 9, 3), STOP_ID], np.int32), False))
    return ExampleDataset.from_examples(rows, STOP_ID)


class CountingGenerator(NoGenerator):
    """Answers by seed and prompt; ``copies`` prompts get the real response, as a perfect one."""

    def __init__(self, examples: ExampleDataset, copies: Sequence[int] = ()):
        self.examples, self.copies = examples, copies
        self.seeds: list[int] = []

    def generate(
        self, prompts: Sequence[np.ndarray], seed: int, on_progress: OnProgress = ignore_progress
    ) -> list[Response]:
        self.seeds.append(seed)
        return [self._answer(int(prompt[0]) - 100, seed) for prompt in prompts]

    def _answer(self, index: int, seed: int) -> Response:
        if index in self.copies:
            return Response(self.examples[index].response, STOP)
        rng = np.random.default_rng([seed, index])
        ids = rng.integers(10, 20, 2 + index % 3, dtype=np.int32)
        if index % 2:
            return Response(ids, LENGTH)
        return Response(np.append(ids, np.int32(STOP_ID)), STOP)


Batch = dict[str, torch.Tensor]


def sums_of_tokens(batch: Batch) -> torch.Tensor:
    """A score [B, 2] that is exact in any batch: minus the sum of the response's tokens."""
    ends = batch["cu_scored"].tolist()
    sums = [-float(batch["targets"][a:b].sum()) for a, b in itertools.pairwise(ends)]
    return torch.tensor(sums).view(-1, 2)


def make_player(
    folder: Path,
    score: Callable[[Batch], torch.Tensor] = sums_of_tokens,
    copies: Sequence[int] = (),
) -> tuple[Player, CountingGenerator]:
    examples = make_examples()
    engine = CountingGenerator(examples, copies)
    return Player(LocalStore(folder), engine, score, examples, SEED, score_batch_size=3), engine


def plan_for(store: LocalStore, iteration: int, units: list[Unit]) -> IterationPlan:
    """Return the plan of an iteration that is open, to make all that is missing."""
    wanted = range(len(units))
    missing = missing_units(store, iteration, wanted)
    manifest: Any = {"generation": {"max_new_tokens": 8}}
    return IterationPlan(iteration, manifest, units, wanted, missing)


def run(player: Player, iteration: int = 0, settings: SpinSettings = SETTINGS) -> PlayReport:
    units = units_of_run(settings, SEED, iteration, NUM_EXAMPLES)
    player.store.open_iteration(
        {
            "iteration": iteration,
            "num_units": len(units),
            "generation": {"max_new_tokens": 9},
        }
    )
    make_units(player, plan_for(player.store, iteration, units))
    return finish_play(player.store, iteration, len(units))


def stored(store: LocalStore, iteration: int, num_units: int) -> list[Pair]:
    return [row for unit in range(num_units) for row in store.read_unit(iteration, unit)]


def content(pairs: Sequence[Pair]) -> list[tuple[int, list[int], list[int], list[int], int]]:
    """Return what pairs hold, without the opponent's sums."""
    return [
        (p.index, p.prompt.tolist(), p.real.tolist(), p.generated.tolist(), p.finish) for p in pairs
    ]


def test_every_prompt_is_answered_and_both_sides_scored(tmp_path: Path) -> None:
    player, engine = make_player(tmp_path)
    report = run(player)
    rows = stored(player.store, 0, 4)
    assert [row.index for row in rows] == list(range(NUM_EXAMPLES))
    assert len(engine.seeds) == len(set(engine.seeds)) == 4  # one call and one seed per unit
    for row in rows:
        example = player.examples[row.index]
        assert row.prompt.tolist() == example.prompt.tolist()
        assert row.real.tolist() == example.response.tolist()
        assert row.opponent_real == -row.real.sum()
        assert row.opponent_generated == -row.generated.sum()
        assert row.finish == (LENGTH if row.index % 2 else STOP)
        assert (row.generated[-1] == STOP_ID) == (row.finish == STOP)
    assert (report.pairs, report.prompts) == (13, 13)
    assert report.metrics()["spin/replayed_pairs"] == 0
    assert sum(unit.truncated for unit in report.units) == 6
    generated = sum(unit.generated_tokens for unit in report.units)
    assert generated == sum(len(row.generated) for row in rows)


def test_a_rerun_reuses_finished_units(tmp_path: Path) -> None:
    first, _ = make_player(tmp_path)
    report = run(first)
    again, engine = make_player(tmp_path)
    assert run(again) == report
    assert engine.seeds == []


def test_a_missing_unit_alone_is_made_again_and_is_the_same(tmp_path: Path) -> None:
    player, first = make_player(tmp_path)
    run(player)
    before = content(stored(player.store, 0, 4))
    shutil.rmtree(player.store.unit_folder(0, 2))
    again, engine = make_player(tmp_path)
    run(again)
    assert engine.seeds == [first.seeds[2]]
    assert content(stored(player.store, 0, 4)) == before


def test_a_play_that_crashed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole, _ = make_player(tmp_path / "whole")
    run(whole)
    player, engine = make_player(tmp_path / "crashed")
    scored = 0

    def failing(batch: Batch) -> torch.Tensor:
        nonlocal scored
        scored += 1
        if scored > 6:
            raise KeyboardInterrupt
        return sums_of_tokens(batch)

    broken = Player(player.store, engine, failing, player.examples, SEED, score_batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    missing = missing_units(player.store, 0, range(4))
    assert 0 < len(missing) < 4
    calls = len(engine.seeds)
    run(player)
    assert len(engine.seeds) - calls == len(missing)
    assert content(stored(player.store, 0, 4)) == content(stored(whole.store, 0, 4))


def test_degenerate_pairs_are_dropped_and_counted(tmp_path: Path) -> None:
    copies = [1, 5, 12]  # 12 is the last unit's only prompt
    player, _ = make_player(tmp_path, copies=copies)
    report = run(player)
    assert [row.index for row in stored(player.store, 0, 4)] == [
        i for i in range(NUM_EXAMPLES) if i not in copies
    ]
    assert (report.pairs, report.prompts) == (10, 13)
    assert report.metrics()["spin/degenerate_fraction"] == pytest.approx(3 / 13)
    assert player.store.report(0, 3).pairs == 0
    kept = sum(len(row.generated) for row in stored(player.store, 0, 4))
    generated = sum(unit.generated_tokens for unit in report.units)
    assert generated == kept + 3 * 4  # theirs count as generated


def test_an_iteration_of_degenerate_pairs_only_is_played(tmp_path: Path) -> None:
    player, _ = make_player(tmp_path, copies=range(NUM_EXAMPLES))
    report = run(player)
    assert (report.pairs, report.prompts, report.noise) == (0, 13, 0.0)
    assert report.metrics()["spin/degenerate_fraction"] == 1


def test_replayed_pairs_are_rescored_by_the_current_opponent(tmp_path: Path) -> None:
    player, _ = make_player(tmp_path, copies=[5])
    run(player)
    now, engine = make_player(tmp_path, score=lambda batch: 2 * sums_of_tokens(batch))
    report = run(now, iteration=1)
    assert len(engine.seeds) == 4  # replayed units are not answered again
    old, replayed = stored(now.store, 0, 4), stored(now.store, 1, 8)[13:]
    assert content(replayed) == content(old)
    for before, after in zip(old, replayed, strict=True):
        assert after.opponent_real == 2 * before.opponent_real
        assert after.opponent_generated == 2 * before.opponent_generated
    assert (report.prompts, report.pairs) == (13, 25)
    metrics = report.metrics()
    assert (metrics["spin/replayed_pairs"], metrics["spin/degenerate_fraction"]) == (12, 0)
    assert [now.store.report(1, u).kind for u in range(8)] == ["play"] * 4 + ["replay"] * 4


def test_replay_of_a_damaged_unit_stops(tmp_path: Path) -> None:
    player, _ = make_player(tmp_path)
    run(player)
    shard = next(player.store.unit_folder(0, 1).glob("shard.*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(StoreError, match="is damaged"):
        run(player, iteration=1)
    with pytest.raises(StoreError, match="is damaged"):
        run(player)  # nor is it trained on


def test_noise_is_the_difference_of_two_scorings_per_token(tmp_path: Path) -> None:
    exact, _ = make_player(tmp_path / "exact")
    assert run(exact).noise == 0.0

    def noisy(batch: Batch) -> torch.Tensor:
        return sums_of_tokens(batch) + 0.25 * len(batch["opponent_logps"])

    player, _ = make_player(tmp_path / "noisy", score=noisy)
    noise = run(player).noise
    # Three pairs are scored together, then alone: each side differs by half a nat.
    expected = []
    for unit in range(3):
        pairs = list(player.store.read_unit(0, unit))[:3]
        tokens = sum(len(pair.real) + len(pair.generated) for pair in pairs)
        expected.append(3 * 2 * 0.5 / tokens)
    assert noise == pytest.approx(max(expected), rel=1e-6)


def test_a_store_that_became_another_runs_ends_play_between_units(tmp_path: Path) -> None:
    player, engine = make_player(tmp_path)

    def verify_lock() -> None:
        if engine.seeds:
            raise StoreError("it was taken over by another run. Let one of them go on.")

    with pytest.raises(StoreError, match="taken over by another run"):
        run(replace(player, verify_lock=verify_lock))
    assert len(engine.seeds) < 4


def test_nothing_is_stored_when_the_iteration_was_begun_in_another_way(tmp_path: Path) -> None:
    player, _ = make_player(tmp_path)

    def begun_by_another() -> None:
        raise StoreError("iter-000 was played by another run. Delete it to play again.")

    with pytest.raises(StoreError, match="by another run"):
        run(replace(player, before_commit=begun_by_another))
    assert player.store.complete_units(0) == set()


def test_each_unit_is_hashed_once_when_a_play_is_resumed(tmp_path: Path, monkeypatch) -> None:
    player, _ = make_player(tmp_path)
    run(player)
    shutil.rmtree(player.store.unit_folder(0, 2))
    hashed: list[str] = []

    def counting(folder: Path) -> str | None:
        hashed.append(folder.name)
        return unit_problem(folder)

    monkeypatch.setattr(local, "unit_problem", counting)
    units = units_of_run(SETTINGS, SEED, 0, NUM_EXAMPLES)
    manifest = player.store.manifest(0)
    checked = check_iteration(player.store, manifest, units, player.examples, False, range(4))
    assert checked.missing == [2]
    make_units(player, plan_for(player.store, 0, units))
    finish_play(player.store, 0, 4, verified=checked.verified)
    assert sorted(hashed) == [f"unit-{unit:05d}" for unit in range(4)]
