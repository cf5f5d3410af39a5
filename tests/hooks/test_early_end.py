"""A run that a callback ended early stays ended: the same command says so, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback, Trainer
from composer.callbacks import EarlyStopper
from composer.core import Event, State
from composer.loggers import Logger
from fixtures.runs import tiny_trainer

from spin_composer.report.history import read_history
from spin_composer.report.outline import RunOutline
from spin_composer.report.status import next_step, read_status
from spin_composer.train import exit_code


class StopsAt(Callback):
    """Ends the run at the first event of a kind from a batch on."""

    def __init__(self, event: Event, batch: int):
        self.event, self.batch = event, batch

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if event == self.event and int(state.timestamp.batch) >= self.batch:
            state.stop_training()


def no_better(patience: int | str) -> EarlyStopper:
    """A stopper whose first value stays the best."""
    return EarlyStopper("SpinAccuracy", "train", min_delta=100.0, patience=patience)


def command(folder: Path, stopper: Callback | None, epochs: int = 2, **overrides: Any) -> Trainer:
    settings: dict[str, Any] = {
        "save_folder": str(folder / "checkpoints"),
        "save_interval": "1ba",
        "autoresume": True,
        "callbacks": [] if stopper is None else [stopper],
        **overrides,
    }
    return tiny_trainer(
        folder, spin={"iteration_length": f"{epochs}ep", "store": str(folder / "s")}, **settings
    )


@pytest.mark.parametrize(
    ("make", "epochs", "batches", "closed"),
    [
        pytest.param(lambda: no_better(0), 2, 12, 1, id="an iteration's end"),
        pytest.param(lambda: no_better(0), 3, 12, 0, id="an epoch's end in it"),
        pytest.param(lambda: no_better("1ba"), 2, 3, 0, id="some batches without better"),
        pytest.param(lambda: StopsAt(Event.BATCH_END, 3), 2, 3, 0, id="a batch's end"),
        pytest.param(lambda: StopsAt(Event.ITERATION_START, 0), 2, 1, 0, id="the first play"),
        pytest.param(lambda: StopsAt(Event.ITERATION_START, 5), 2, 13, 1, id="the second play"),
    ],
)
def test_a_run_that_was_ended_early_stays_so(tmp_path, capsys, make, epochs, batches, closed):
    first = command(tmp_path, make(), epochs)
    assert exit_code(first.fit, "run.yaml") == 0
    first.close()
    assert int(first.state.timestamp.batch) == batches
    name = type(make()).__name__
    line = read_history(tmp_path / "s").ended
    assert line.startswith(name)
    assert len(read_history(tmp_path / "s").iterations) == closed

    capsys.readouterr()
    again = command(tmp_path, make(), epochs)
    before = {k: v.clone() for k, v in again.state.model.state_dict().items()}
    assert exit_code(again.fit, "run.yaml") == 0
    assert f"run.yaml: the run is finished already ({line}); nothing" in capsys.readouterr().err
    again.close()
    assert int(again.state.timestamp.batch) == batches
    for key, value in first.state.model.state_dict().items():
        assert torch.equal(before[key], value), key
    saves = tmp_path / "checkpoints"
    outline = RunOutline(tmp_path / "s", save_folder=saves, epochs=epochs, iterations=2)
    assert next_step(read_status(outline)) == f"nothing: the run is finished ({line})"


def test_it_goes_on_without_who_ended_it_and_when_it_is_to_be_longer(tmp_path):
    first = command(tmp_path, StopsAt(Event.BATCH_END, 3), max_duration="1iter")
    first.fit()
    first.close()
    longer = command(tmp_path, StopsAt(Event.BATCH_END, 5))
    longer.fit()
    longer.close()
    assert int(longer.state.timestamp.batch) == 5
    freed = command(tmp_path, None)
    freed.fit()
    freed.close()
    assert int(freed.state.timestamp.batch) == 36
    assert "ended" not in json.loads((tmp_path / "s/iterations.json").read_text())


def test_a_run_ended_by_its_first_evaluation_plays_nothing(tmp_path, capsys):
    trainer = command(tmp_path, None)
    trainer.state.stop_training()  # as a stopper does after eval_first
    assert exit_code(trainer.fit, "run.yaml") == 0
    assert "nothing was played and nothing trained" in capsys.readouterr().err
    assert not (tmp_path / "s/iter-000").exists()
