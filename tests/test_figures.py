"""The figures of an iteration are the iteration's, whichever process made what of it."""

from __future__ import annotations

import json
import logging

import pytest
from fixtures.runs import tiny_trainer

from spin_composer.play.player import Player
from spin_composer.report.spans import union_seconds
from spin_composer.store.durable import dump_hashed, load_hashed
from spin_composer.store.local import LocalStore


@pytest.mark.parametrize(
    ("spans", "until", "seconds"),
    [
        ([], 9.0, 0.0),
        ([(1.0, 3.0), (2.0, 4.0)], 9.0, 3.0),  # two ranks at once
        ([(6.0, 7.0), (1.0, 3.0)], 9.0, 3.0),  # a pause between two processes
        ([(1.0, 8.0), (2.0, 3.0)], 9.0, 7.0),  # one within the other
        ([(1.0, 3.0), (5.0, 8.0)], 6.0, 3.0),  # the rest is this process's
        ([(0.0, 0.0), (5.0, 6.0), (8.0, 7.0)], 9.0, 1.0),  # an old store's; a clock set back
    ],
)
def test_time_of_several_counts_once(spans, until, seconds):
    assert union_seconds(spans, until) == seconds


class Killed(Exception):
    pass


def test_a_resumed_play_keeps_the_seconds_of_the_process_that_died(tmp_path, monkeypatch):
    commit = Player.commit

    def dies(self, iteration, unit):
        if unit.draft.index == 3:
            raise Killed
        return commit(self, iteration, unit)

    short = {"iteration_length": "1ep"}
    monkeypatch.setattr(Player, "commit", dies)
    with pytest.raises(Killed):
        tiny_trainer(tmp_path, spin=short, max_duration="1iter").fit()
    monkeypatch.setattr(Player, "commit", commit)
    store = LocalStore(tmp_path / "self-play")
    made = [store.report(0, unit) for unit in range(3)]
    died = union_seconds((r.began, r.ended) for r in made)
    assert 0 < died <= sum(r.generation_seconds + r.scoring_seconds for r in made) + 1e-3

    trainer = tiny_trainer(tmp_path, spin=short, max_duration="1iter")
    trainer.fit()
    made = [store.report(0, unit) for unit in range(5)]
    game = trainer.state.algorithms[0].game
    assert game.earlier_play_seconds == died
    (record,) = json.loads((tmp_path / "self-play/iterations.json").read_text())["iterations"]
    assert record["spin/play_seconds"] == game.play_seconds
    assert game.play_seconds > union_seconds((r.began, r.ended) for r in made)
    assert game.play_seconds / record["play_time_share"] > game.play_seconds  # a share of it all


def test_a_store_that_noted_no_times_is_taken_up_and_counts_none(tmp_path):
    short = {"iteration_length": "1ep"}
    tiny_trainer(tmp_path, spin=short, max_duration="1iter").fit()
    for path in (tmp_path / "self-play/iter-000/units").glob("unit-*/unit.json"):
        report = load_hashed(path.read_text())
        path.write_text(
            dump_hashed(
                {k: v for k, v in report.items() if k not in ("began", "ended", "server_gap")}
            )
        )
    trainer = tiny_trainer(tmp_path, spin=short, max_duration="1iter")
    trainer.fit()
    game = trainer.state.algorithms[0].game
    assert game.earlier_play_seconds == 0
    assert game.play_seconds > 0


@pytest.mark.parametrize(("batch", "left_out"), [(4, 0), (5, 4)])
def test_an_epochs_remainder_is_in_the_figures_and_the_log(tmp_path, caplog, batch, left_out):
    short = {"iteration_length": "1ep"}
    trainer = tiny_trainer(tmp_path, spin=short, max_duration="1iter", device_batch_size=batch)
    with caplog.at_level(logging.WARNING, logger="spin_composer"):
        trainer.fit()
    (record,) = json.loads((tmp_path / "self-play/iterations.json").read_text())["iterations"]
    assert record["spin/left_out_pairs"] == left_out
    assert record["spin/pairs"] == 24 - left_out == int(trainer.state.timestamp.sample)
    said = [r.message for r in caplog.records if "left out" in r.message]
    assert len(said) == (left_out > 0)
    assert all("20 of the 24 pairs" in line for line in said)
