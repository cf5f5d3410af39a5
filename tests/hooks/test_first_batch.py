"""The check of an iteration's first batch: what it finds, and where its collective may meet."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback
from composer.trainer import trainer as composer_trainer
from composer.utils import dist
from fixtures.ranks import on_ranks
from fixtures.runs import tiny_trainer

from spin_composer.model.unwrap import composer_model

GROUP = {"timeout_seconds": 60, "patience_seconds": 300, "one_node": True}


class Figures(Callback):
    """Keeps the losses, and what is logged of the first batch; runs out of memory once.

    Args:
        where: A rank runs out of memory in its first batch.
    """

    def __init__(self, where: str):
        self.losses: list[float] = []
        self.gaps: list[float] = []
        self.where = where if dist.get_global_rank() == 1 else ""

    def run_out(self, where: str) -> None:
        if where == self.where:
            self.where = ""
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (simulated)")

    def batch_start(self, state: Any, logger: Any) -> None:
        model = composer_model(state)  # within DDP, which makes a collective of its own before
        forward = type(model).forward

        def running_out(batch: Any) -> Any:
            self.run_out("forward")
            return forward(model, batch)

        model.forward = running_out

    def after_backward(self, state: Any, logger: Any) -> None:
        self.run_out("metrics")

    def after_train_batch(self, state: Any, logger: Any) -> None:
        assert not self.losses or self.gaps  # decided before the first step

    def batch_end(self, state: Any, logger: Any) -> None:
        self.losses.append(state.total_loss_dict["loss/train/total"])


def train_auto(folder: str, where: str, rank: int) -> Any:
    # Composer lets only a GPU have auto; nothing else of it asks for one here.
    composer_trainer._is_auto_microbatching = lambda size, device: size == "auto"
    figures = Figures(where)
    trainer = tiny_trainer(
        Path(folder) / f"rank-{rank}",
        callbacks=[figures],
        device_train_microbatch_size="auto",
        max_duration="1iter",
        spin={"store": f"{folder}/self-play", "iteration_length": "1ep"},
    )
    logged = trainer.logger.log_metrics

    def log_metrics(metrics: Any, step: Any = None) -> None:
        figures.gaps += [v for k, v in metrics.items() if k == "spin/first_batch_gap"]
        logged(metrics, step)

    trainer.logger.log_metrics = log_metrics
    trainer.fit()
    return trainer.state.device_train_microbatch_size, figures.gaps, figures.losses


@pytest.mark.parametrize(
    "where",
    [
        "forward",  # the other rank waits after its forward
        "metrics",  # after the backward of its only microbatch: the other has done its batch
    ],
)
def test_a_rank_out_of_memory_in_the_first_batch_meets_none_of_our_collectives(where, tmp_path):
    body = functools.partial(train_auto, str(tmp_path), where)
    found = on_ranks(body, **GROUP)
    assert found[0] == found[1], found
    size, gaps, losses = found[0]
    assert size == 2, found  # half of the 4 pairs of a rank's batch
    assert len(gaps) == 1
    assert 0 <= gaps[0] < 1e-6
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(losses) == 3
    assert torch.tensor(losses).isfinite().all()
