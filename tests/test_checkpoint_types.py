"""Checkpoints hold plain types only: Composer after 0.32 loads no other (``weights_only=True``).

The allowlist is the one of Composer's commit 6405188 (April 2026), which no release has yet.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.runs import tiny_trainer
from torch.torch_version import TorchVersion


def allowed() -> list[Any]:
    reconstruct = np.ndarray.__reduce__(np.zeros(1))[0]  # numpy renamed its module
    kinds = [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
    return [datetime.timedelta, np.ndarray, np.dtype, TorchVersion, reconstruct, *kinds]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny_trainer(
        folder, max_duration="2iter", save_folder=str(folder / "checkpoints"), save_interval="1ba"
    )
    trainer.fit(duration="7ba")  # in the middle of the first iteration
    trainer.close()
    return folder / "checkpoints" / "ep1-ba7-rank0.pt"


def test_a_runs_checkpoint_loads_as_composers_next_release_loads_it(checkpoint: Path) -> None:
    with torch.serialization.safe_globals(allowed()):
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state"]
    algorithms = dict(state["algorithms"])
    assert algorithms["SPIN"]["manifest"]["iteration"] == 0
    assert algorithms["SPIN"]["books"]


def test_the_algorithms_own_state_needs_no_allowlist(checkpoint: Path) -> None:
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["state"]
    saved = checkpoint.with_name("algorithms.pt")
    torch.save(state["algorithms"], saved)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(saved) == []
