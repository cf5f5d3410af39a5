"""Composer's compile_config: pairs are computed as without it, and nothing is compiled again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from composer import Callback
from fixtures.runs import tiny_trainer
from torch._dynamo.utils import counters

from spin_composer.report.history import LOSS


class Frames(Callback):
    """Notes how many frames torch has compiled so far, and the losses."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.losses: list[float] = []

    def batch_end(self, state: Any, logger: Any) -> None:
        del logger
        self.counts.append(sum(counters["frames"].values()))
        self.losses.append(float(state.total_loss_dict[LOSS]))


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_pairs_of_other_lengths_are_not_compiled_again(layout: str, tmp_path: Path) -> None:
    found = []
    for name, config in (("plain", {}), ("compiled", {"compile_config": {"backend": "eager"}})):
        frames = Frames()
        trainer = tiny_trainer(
            tmp_path / name, spin={"layout": layout}, callbacks=[frames], max_duration="1iter",
            **config,
        )  # fmt: skip
        trainer.fit(duration="5ba")
        found.append(frames)
    plain, compiled = found
    assert compiled.losses == plain.losses
    assert len(set(compiled.counts)) == 1, compiled.counts
