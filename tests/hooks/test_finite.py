"""NaN and infinity stop the run before the optimizer's step, and before anything is saved."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback
from composer.algorithms import GradientClipping
from fixtures import models, tokenizers
from fixtures.ranks import on_ranks
from fixtures.runs import tiny_trainer

from spin_composer.algorithm import SPIN
from spin_composer.errors import NotFiniteError, explain, rebuild_error
from spin_composer.model.unwrap import composer_model


class Spoil(Callback):
    """Makes something of one batch not finite."""

    def __init__(self, what: str, batch: int):
        self.what, self.batch = what, batch

    def after_backward(self, state: Any, logger: Any) -> None:
        if self.what == "gradient" and int(state.timestamp.batch) == self.batch:
            next(state.model.parameters()).grad[0, 0] = math.inf

    def before_train_batch(self, state: Any, logger: Any) -> None:
        if self.what == "loss" and int(state.timestamp.batch) == self.batch:
            # One pair's opponent: one loss only is NaN.
            state.batch["opponent_logps"][1] = math.nan

    def batch_end(self, state: Any, logger: Any) -> None:
        if self.what == "weight" and int(state.timestamp.batch) == self.batch + 1:
            with torch.no_grad():
                next(state.model.parameters())[0, 0] = math.nan


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.state.model.state_dict().items()}


def stopped(folder: Path, what: str, batch: int, **overrides: Any) -> tuple[Any, str]:
    trainer = tiny_trainer(
        folder,
        callbacks=[Spoil(what, batch)],
        max_duration="1iter",
        save_folder=str(folder / "checkpoints"),
        save_interval="1ba",
        save_filename="ba{batch}.pt",
        **overrides,
    )
    with pytest.raises(NotFiniteError) as error:
        trainer.fit()
    return trainer, str(error.value)


def test_a_loss_that_is_nan_stops_the_run_naming_the_row(tmp_path: Path) -> None:
    trainer, line = stopped(tmp_path, "loss", 2)
    (row,) = [trainer.state.batch["indices"][1]]
    assert f"iteration 0, batch 2: the loss is not finite (training rows {row} of the data)" in line
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("ba*")) == ["ba1.pt", "ba2.pt"]
    assert all(t.isfinite().all() for t in weights(trainer).values())
    assert explain(NotFiniteError(line)) == (5, line)
    assert isinstance(rebuild_error(5, line), NotFiniteError)


def test_an_infinite_gradient_is_found_before_clipping_hides_it(tmp_path: Path) -> None:
    trainer, line = stopped(tmp_path, "gradient", 1)
    assert "iteration 0, batch 1: the gradient is not finite (training rows " in line
    assert len(trainer.state.batch["indices"]) == 4


def test_clipping_does_not_hide_it(tmp_path: Path) -> None:
    spin = SPIN(
        iteration_length="1ep", store=str(tmp_path / "s"), unit_size=12, sample_table_rows=0,
        generation={"max_new_tokens": 4},
    )  # fmt: skip
    for order in ([0, 1], [1, 0]):
        algorithms = [spin, GradientClipping("value", 1.0)]
        trainer = tiny_trainer(
            tmp_path / str(order[0]),
            callbacks=[Spoil("gradient", 1)],
            algorithms=[algorithms[i] for i in order],
            max_duration="1iter",
        )
        with pytest.raises(NotFiniteError, match="the gradient is not finite"):
            trainer.fit()
        spin = SPIN(
            iteration_length="1ep", store=str(tmp_path / "t"), unit_size=12, sample_table_rows=0,
            generation={"max_new_tokens": 4},
        )  # fmt: skip


def test_weights_that_are_nan_are_not_saved(tmp_path: Path) -> None:
    _, line = stopped(tmp_path, "weight", 11)
    assert "weights are not finite (" in line
    assert not (tmp_path / "checkpoints/ba12.pt").exists()


def test_a_base_model_that_is_nan_is_refused_before_play(tmp_path: Path) -> None:
    model = models.tiny_model("llama", vocab_size=len(tokenizers.byte_level()))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(NotFiniteError) as error:
        tiny_trainer(tmp_path, model)
    assert "1 of the model's 21 weights are not finite (" in str(error.value)
    assert "layers.1.mlp.up_proj.weight), before training" in str(error.value)


def test_an_opponent_whose_log_probs_are_nan_stores_nothing(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    model = composer_model(trainer.state)
    model.score = lambda batch: torch.full((len(batch["opponent_logps"]), 2), math.nan)
    with pytest.raises(NotFiniteError, match=r"log-probs of 5 responses .* rows \d+, "):
        trainer.fit()
    assert not list((tmp_path / "self-play").glob("iter-000/units/unit-*"))


def train_spoilt(folder: str, rank: int) -> Any:
    trainer = tiny_trainer(
        Path(folder) / f"rank-{rank}",
        callbacks=[Spoil("loss", 1)] if rank == 1 else [],
        device_train_microbatch_size=4,
        max_duration="1iter",
        spin={"store": f"{folder}/self-play"},
    )
    trainer.fit()


def test_all_ranks_stop_at_what_one_of_them_finds(tmp_path: Path) -> None:
    body = functools.partial(train_spoilt, str(tmp_path))
    found = on_ranks(body, timeout_seconds=60, patience_seconds=300, one_node=True)
    assert found[0] == found[1]
    kind, line, code = found[0]
    assert (kind, code) == ("NotFiniteError", 5)
    assert re.search(r"batch 1: the loss is not finite \(training rows \d+ of the data\)", line)
