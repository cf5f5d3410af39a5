"""What the algorithm promises of a whole run, beyond what its parts' tests show."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composer import Callback
from composer.optim import LinearScheduler
from fixtures.runs import NUM_ROWS, tiny_trainer
from torch.utils.data import DataLoader

from spin_composer import SPIN
from spin_composer.errors import InputError, StoreError
from spin_composer.metrics import KIND_METRICS
from spin_composer.play.player import Player
from spin_composer.store.local import LocalStore


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.state.model.parameters()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two iterations: its folder and Trainer."""
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny_trainer(folder)
    trainer.fit()
    return folder, trainer


def test_epochs_and_iterations_are_the_same_duration(run, tmp_path):
    _, by_iterations = run
    by_epochs = tiny_trainer(tmp_path, max_duration="4ep")
    by_epochs.fit()
    assert all(map(torch.equal, weights(by_epochs), weights(by_iterations)))


def test_deterministic_runs_are_bitwise_repeatable(tmp_path):
    try:
        first, second = (tiny_trainer(tmp_path / n, spin={"deterministic": True}) for n in "ab")
        assert torch.are_deterministic_algorithms_enabled()
        first.fit()
        second.fit()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, weights(first), weights(second)))


class CountCopies(Callback):
    """Counts, at every batch's end, the tensors of the head's shape made since gc.freeze()."""

    def __init__(self) -> None:
        self.most = 0

    def batch_end(self, state, logger) -> None:
        shape = state.model.model.lm_head.weight.shape
        found = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
        self.most = max(self.most, len({o.data_ptr() for o in found if o.shape == shape}))


def test_training_holds_one_model(tmp_path):
    gc.collect()
    gc.freeze()  # what is there already is not looked through at every batch
    try:
        count = CountCopies()
        trainer = tiny_trainer(tmp_path, callbacks=[count])
        shape = trainer.state.model.model.lm_head.weight.shape
        alike = sum(p.shape == shape for p in trainer.state.model.parameters())
        trainer.fit()
    finally:
        gc.unfreeze()
    # each weight, its gradient and Adam's two moments; a reference model would add one more each
    assert alike < count.most <= 4 * alike


def test_the_metrics_of_the_docs_are_those_that_are_logged(run):
    _, trainer = run
    logged = set(trainer.logger.destinations[0].data)
    page = (Path(__file__).parents[1] / "docs/metrics.md").read_text()
    named = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert len(named) > 15
    elsewhere = {"spin/server_gap"}  # engine server's: tests/engines/server/test_logprob_gap.py
    elsewhere |= {"spin/between_pairs"}  # of the game ditto, as these: tests/test_ditto.py
    elsewhere |= {f"metrics/train/{metric.__name__}" for metric in KIND_METRICS}
    elsewhere |= {n for n in named if n.startswith(("judge/", "alarms/"))}  # their own tests
    assert {n for n in named if not n.startswith("metrics/eval")} - elsewhere <= logged
    assert {n for n in logged if n.startswith(("spin/", "metrics/train/"))} <= named


def test_a_fresh_subset_is_played_in_each_iteration(tmp_path):
    tiny_trainer(tmp_path, spin={"samples_per_iteration": 10, "replay": 0}).fit()
    store = LocalStore(tmp_path / "self-play")
    played = [
        {row.index for unit in (0, 1) for row in store.read_unit(iteration, unit)}
        for iteration in (0, 1)
    ]
    assert [len(p) for p in played] == [10, 10]
    assert played[0] != played[1]


def test_each_prompt_makes_as_many_pairs_as_responses_are_asked_for(tmp_path):
    trainer = tiny_trainer(tmp_path, spin={"responses_per_prompt": 3})
    trainer.fit()
    store = LocalStore(tmp_path / "self-play")
    assert "responses_per_prompt" in store.manifest(0)
    for iteration, wanted in ((0, {"play"}), (1, {"play", "replay"})):
        units = range(store.manifest(iteration)["num_units"])
        assert {store.report(iteration, unit).kind for unit in units} == wanted
        rows = [row for unit in units for row in store.read_unit(iteration, unit)]
        assert len(rows) == 3 * NUM_ROWS * len(wanted)
        for index in range(NUM_ROWS):
            same = [row for row in rows if row.index == index]
            assert len({tuple(row.real) for row in same}) == 1
            assert len({tuple(row.generated) for row in same}) == len(same)
    pairs = [value for _, value in trainer.logger.destinations[0].data["spin/pairs"]]
    assert pairs == [3 * NUM_ROWS, 6 * NUM_ROWS]


def test_scores_of_other_weights_are_found_at_the_first_batch(tmp_path, monkeypatch):
    original = Player._rescore

    def stale(self, pairs):
        rescored, noise = original(self, pairs)
        return [replace(p, opponent_real=p.opponent_real + 1e-2) for p in rescored], noise

    monkeypatch.setattr(Player, "_rescore", stale)
    with pytest.raises(RuntimeError, match="policy must equal the opponent"):
        tiny_trainer(tmp_path).fit()


def test_another_scheduler_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be one SpinScheduler, got LinearScheduler"):
        tiny_trainer(tmp_path, schedulers=LinearScheduler()).fit()


def test_another_loader_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"train_loader.*name: spin"):
        tiny_trainer(tmp_path, train_dataloader=DataLoader([1, 2, 3])).fit()


def test_a_batch_larger_than_the_pairs_is_refused(tmp_path):
    with pytest.raises(InputError, match="more than the 24 rows: an iteration would have no"):
        tiny_trainer(tmp_path, device_batch_size=25).fit()


def test_generation_past_the_models_positions_is_refused(tmp_path):
    spin = {"generation": {"max_new_tokens": 40}}
    with pytest.raises(InputError, match=r"max_new_tokens=40 after the longest prompt"):
        tiny_trainer(tmp_path, spin=spin).fit()


def test_a_remainder_of_the_duration_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"max_duration=3ep is not a whole number of iterations"):
        tiny_trainer(tmp_path, max_duration="3ep")


def test_play_looks_at_the_runs_own_locks(tmp_path):
    trainer = tiny_trainer(tmp_path, max_duration="1iter")
    spin = next(a for a in trainer.state.algorithms if isinstance(a, SPIN))
    spin._locks[0]._lost = True  # as the heartbeat of a lock does that another run took
    with pytest.raises(StoreError, match="was taken over by another run"):
        trainer.fit()
    spin._locks[0]._lost = False
    trainer.fit()
    assert spin.game is not None
    spin._locks[0]._lost = True
    with pytest.raises(StoreError, match="was taken over by another run"):
        spin.game.verify_lock()
