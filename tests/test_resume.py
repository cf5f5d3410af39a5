"""A run stopped anywhere and resumed ends with bit-identical weights (CPU, fp32)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from composer.core import State, Timestamp
from composer.optim import ConstantScheduler
from fixtures.runs import tiny_trainer

from spin_composer.errors import InputError, StoreError
from spin_composer.model.layout import choose
from spin_composer.model.unwrap import composer_model
from spin_composer.preflight.checkpoint import check_is_self_play

# 24 pairs / 4 = 6 batches an epoch, 12 in iteration 0; replay makes it 12 and 24 in iteration 1
BATCHES = {
    "first batch": "ep0-ba1",
    "mid epoch": "ep0-ba4",
    "last batch of an epoch": "ep0-ba6",
    "mid second epoch": "ep1-ba9",
    "an iteration's end": "ep2-ba12",
    "first batch of the second iteration": "ep2-ba13",
    "last batch of its first epoch": "ep2-ba24",
    "last batch but one": "ep3-ba35",
}


def weights(trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.state.model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run that checkpoints every batch: its folder and final weights."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = tiny_trainer(
        folder,
        save_folder=str(folder / "checkpoints"),
        save_interval="1ba",
        save_filename="ep{epoch}-ba{batch}.pt",
    )
    trainer.fit()
    trainer.close()
    return folder, weights(trainer), (folder / "self-play/iterations.json").read_text()


def resumed(whole_folder: Path, checkpoint: str, folder: Path, **settings):
    """Resume a checkpoint with the store as it was then; return the finished Trainer."""
    iteration = 0 if int(checkpoint.split("ba")[1]) <= 12 else 1
    for k in range(iteration + 1):
        name = f"iter-{k:03d}"
        shutil.copytree(whole_folder / "self-play" / name, folder / "self-play" / name)
    load_path = str(whole_folder / "checkpoints" / f"{checkpoint}.pt")
    trainer = tiny_trainer(folder, load_path=load_path, **settings)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("where", BATCHES)
def test_resumed_weights_are_bit_identical(whole, where, tmp_path):
    folder, final, _ = whole
    trainer = resumed(folder, BATCHES[where], tmp_path)
    assert int(trainer.state.timestamp.batch) == 36
    assert int(trainer.state.timestamp.iteration) == 2
    for name, value in weights(trainer).items():
        assert torch.equal(value, final[name]), name


def test_a_resumed_run_keeps_the_same_history(whole, tmp_path):
    folder, _, history = whole
    resumed(folder, BATCHES["mid second epoch"], tmp_path)
    wanted = json.loads(history)["iterations"]
    found = json.loads((tmp_path / "self-play/iterations.json").read_text())["iterations"]
    for a, b in zip(wanted, found, strict=True):
        for name in a:
            if "seconds" not in name and "second" not in name and "share" not in name:
                assert a[name] == pytest.approx(b[name], rel=1e-6), name


def test_a_last_epochs_checkpoint_does_not_train_an_extra_epoch(tmp_path):
    first = tiny_trainer(
        tmp_path,
        save_folder=str(tmp_path / "checkpoints"),
        save_interval="1ep",
        save_filename="ep{epoch}.pt",
    )
    first.fit()
    again = tiny_trainer(tmp_path, load_path=str(tmp_path / "checkpoints/ep2.pt"))
    again.fit()
    assert int(again.state.timestamp.batch) == int(first.state.timestamp.batch) == 36
    for name, value in weights(again).items():
        assert torch.equal(value, weights(first)[name]), name


def test_resuming_on_another_runs_store_is_refused(whole, tmp_path):
    folder, _, _ = whole
    other = tiny_trainer(tmp_path, seed=8, max_duration="1iter")
    other.fit()
    trainer = tiny_trainer(tmp_path, load_path=str(folder / "checkpoints" / "ep0-ba4.pt"))
    with pytest.raises(StoreError, match=r"differs in .*seed"):
        trainer.fit()


def test_another_batch_size_within_an_epoch_is_refused(whole, tmp_path):
    with pytest.raises(InputError, match=r"size must be 4 until the epoch's end, .*, got 8: pairs"):
        resumed(whole[0], "ep0-ba4", tmp_path, device_batch_size=8)


def test_another_batch_size_from_an_epochs_end_goes_on(tmp_path):
    saved = {"save_folder": str(tmp_path / "checkpoints"), "save_filename": "ep{epoch}.pt"}
    tiny_trainer(tmp_path, save_interval="1ep", **saved).fit()
    shutil.rmtree(tmp_path / "self-play/iter-001")
    again = tiny_trainer(
        tmp_path, load_path=str(tmp_path / "checkpoints/ep1.pt"), device_batch_size=8
    )
    again.fit()
    # of 24 pairs: 6 batches of 4 and 3 of 8 in iteration 0; of 48: twice 6 in iteration 1
    assert int(again.state.timestamp.batch) == 6 + 3 + 2 * 6


@pytest.mark.parametrize("where", ["ep0-ba4", "ep0-ba6", "ep2-ba12", "ep2-ba13"])
@pytest.mark.parametrize("length", ["1ep", "3ep"])
def test_another_iteration_length_is_refused(whole, tmp_path, where, length):
    with pytest.raises(InputError, match=rf"as it was when the run began, 2ep, got {length}: the"):
        resumed(whole[0], where, tmp_path, spin={"iteration_length": length})


def test_another_iteration_length_than_an_older_checkpoints_is_seen_by_its_clock():
    clock = Timestamp(iteration=2, epoch=5, epoch_in_iteration=1)
    state = cast(State, SimpleNamespace(timestamp=clock))
    saved = {"manifest": {}}  # of a version that did not save the length
    check_is_self_play(state, saved, epochs=2)
    for epochs in (1, 3):
        with pytest.raises(InputError, match=rf"when the run began, got {epochs}ep: "):
            check_is_self_play(state, saved, epochs)


def test_an_iterations_checkpoint_plays_the_next_iteration_anew(tmp_path):
    first = tiny_trainer(
        tmp_path,
        save_folder=str(tmp_path / "checkpoints"),
        save_interval="1iter",
        save_filename="ep{epoch}.pt",
    )
    first.fit()
    shutil.rmtree(tmp_path / "self-play/iter-001")
    again = tiny_trainer(tmp_path, load_path=str(tmp_path / "checkpoints/ep2.pt"))
    again.fit()
    for name, value in weights(again).items():
        assert torch.equal(value, weights(first)[name]), name


@pytest.mark.parametrize("durations", [["1ep"] * 4, ["4ba", "32ba"], ["1iter"] * 2], ids="-".join)
def test_fits_one_after_another_are_one_run(whole, durations, tmp_path):
    _, final, history = whole
    trainer = tiny_trainer(tmp_path)
    for duration in durations:
        trainer.fit(duration=duration)
    assert int(trainer.state.timestamp.batch) == 36
    for name, value in weights(trainer).items():
        assert torch.equal(value, final[name]), name
    found = json.loads((tmp_path / "self-play/iterations.json").read_text())["iterations"]
    wanted = json.loads(history)["iterations"]
    assert [r["batches"] for r in found] == [r["batches"] for r in wanted]


def test_a_run_keeps_the_layout_that_it_began_with(whole, tmp_path, monkeypatch):
    folder, *_ = whole
    manifest = json.loads((folder / "self-play/iter-001/manifest.json").read_text())
    assert manifest["layout"] == "shared"

    tried = []
    whether = choose._Trial.failure

    def failure(trial):
        tried.append(trial.layout.name)
        return whether(trial)

    monkeypatch.setattr(choose._Trial, "failure", failure)
    trainer = resumed(folder, "ep3-ba35", tmp_path)
    assert composer_model(trainer.state).layout.name == "shared"
    assert tried == ["shared"]  # again, as the packages may be other ones


def test_another_layout_within_an_iteration_is_refused(whole, tmp_path):
    with pytest.raises(StoreError, match=r"differs in layout \(store 'shared', run 'padded'\)"):
        resumed(whole[0], "ep3-ba35", tmp_path, spin={"layout": "padded"})


def test_a_layout_that_the_model_cannot_have_any_more_is_refused(whole, tmp_path, monkeypatch):
    reason = "LlamaForCausalLM takes no positions"  # as another version of transformers might say
    monkeypatch.setattr(choose, "unsupported_reason", lambda *_: reason)
    with pytest.raises(InputError, match=f"began with layout shared, .* any more: {reason}"):
        resumed(whole[0], "ep3-ba35", tmp_path)


def test_a_run_of_a_version_that_only_padded_goes_on_padded(tmp_path):
    checkpoint = str(tmp_path / "checkpoint.pt")
    padded = tiny_trainer(tmp_path, spin={"layout": "padded"})
    padded.fit(duration="3ba")
    padded.save_checkpoint(checkpoint)
    padded.close()
    manifest = json.loads((tmp_path / "self-play/iter-000/manifest.json").read_text())
    assert "layout" not in manifest  # as that version wrote it
    for settings in ({"load_path": checkpoint}, {}):  # mid-epoch; and stopped in its first play
        trainer = tiny_trainer(tmp_path, **settings)
        trainer.fit(duration="1ba")
        assert composer_model(trainer.state).layout.name == "padded"
        trainer.close()


@pytest.fixture(scope="module")
def sft_checkpoint(tmp_path_factory):
    """A checkpoint of a training without the algorithm, after its fourth batch."""
    folder = tmp_path_factory.mktemp("sft")
    trainer = tiny_trainer(folder, algorithms=[], schedulers=ConstantScheduler())
    trainer.state.timestamp = trainer.state.timestamp.to_next_batch(4).to_next_epoch()
    trainer.save_checkpoint(str(folder / "sft.pt"))
    return folder / "sft.pt"


def test_another_trainings_checkpoint_is_refused_by_the_key_that_reads_it(sft_checkpoint, tmp_path):
    with pytest.raises(
        InputError, match=r"load_path: .* epoch 1, batch 1 .*load_weights_only: true"
    ):
        tiny_trainer(tmp_path, load_path=str(sft_checkpoint))
    assert not list(tmp_path.glob("self-play/iter-*"))


def test_another_trainings_weights_are_what_the_run_begins_with(sft_checkpoint, tmp_path):
    trainer = tiny_trainer(tmp_path, load_path=str(sft_checkpoint), load_weights_only=True)
    trainer.fit(duration="1ba")
    assert int(trainer.state.timestamp.batch) == 1
