"""CONTRIBUTING's recipes: an engine, a store, a loss and two metrics, each added in one place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.echo_engine import EchoGenerator
from fixtures.runs import NUM_ROWS, tiny_trainer
from torch import Tensor

from spin_composer.errors import InputError
from spin_composer.loss import LOSSES, register_loss
from spin_composer.metrics import PAIR_METRICS, PairMetric, register_pair_metric
from spin_composer.play.metrics import PLAY_METRICS, PlayReport, register_play_metric
from spin_composer.settings.engines import ENGINES, EngineEntry
from spin_composer.settings.spin import STORES, SpinSettings
from spin_composer.store.local import LocalStore


def linear(real: Tensor, generated: Tensor, before: Tensor, before_too: Tensor, beta: float):
    """Return -m, whose gradient is the same for every pair."""
    return -beta * ((real - before) - (generated - before_too))


class RealShare(PairMetric):
    """Share of the real response in the rewards' spread."""

    unit = "share"

    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards[:, 0].abs() / rewards.abs().sum(1).clamp_min(1e-12)


def longest_unit(report: PlayReport) -> float:
    """Pairs of the largest unit."""
    return max(unit.pairs for unit in report.units)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of two iterations that uses all five toys: its folder and its log."""
    folder = tmp_path_factory.mktemp("toys")
    pair_metrics, losses, play_metrics = list(PAIR_METRICS), dict(LOSSES), dict(PLAY_METRICS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "echo", EngineEntry("fixtures.echo_engine:EchoEngine"))
        patch.setitem(STORES, "tape", "fixtures.tape_store:TapeStore")
        try:
            register_loss("margin")(linear)
            register_pair_metric(RealShare)
            register_play_metric("spin/longest_unit", "pairs")(longest_unit)
            spin = {
                "loss": "margin",
                "remote_store": f"tape://{folder}/tape.txt",
                "generation": {"max_new_tokens": 12, "engine": "echo"},
            }
            trainer = tiny_trainer(folder, spin=spin)
            trainer.fit()
        finally:
            PAIR_METRICS[:] = pair_metrics
            for registry, kept in ((LOSSES, losses), (PLAY_METRICS, play_metrics)):
                registry.clear()
                registry.update(kept)
    return folder, trainer.logger.destinations[0].data


def test_the_toy_engine_answers_and_says_what_its_responses_depend_on(run: Any) -> None:
    folder, _ = run
    store = LocalStore(folder / "self-play")
    stop = store.manifest(0)["stop_token_id"]
    pairs = [pair for unit in range(5) for pair in store.read_unit(0, unit)]
    assert len(pairs) == NUM_ROWS
    for pair in pairs:
        echo = EchoGenerator(stop, 12).echo(pair.prompt)
        assert pair.generated.tolist() == echo.ids.tolist()
        assert pair.finish == echo.finish
    assert store.manifest(0)["generation"]["engine"] == "echo"


def test_an_engine_declares_its_settings_in_its_own_package() -> None:
    code = """
from spin_composer.settings.engines import ENGINES, EngineEntry
ENGINES["dial"] = EngineEntry("nowhere:Dial", "fixtures.dial_settings:DialSettings")
from spin_composer.errors import InputError
from spin_composer.settings.spin import SpinSettings
def said(**generation):
    try:
        return SpinSettings(generation=generation).generation.dial.volume
    except InputError as error:
        return error
print(said(engine="dial", dial={"volume": 3}))
print(said(engine="dial", dial={"volume": 11}))
print(said(engine="dial", dial={"volum": 1}))
print(said(dial={}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )  # fmt: skip
    where = "algorithms.spin.generation.dial"
    assert done.stdout.splitlines() == [
        "3",
        f"{where}.volume must be an integer in [0, 10], got 11.",
        f"{where}.volum is not a setting. Did you mean 'volume'?",
        f"{where} must be absent with hf, got 'a section'. Set engine: dial, or remove the "
        "section.",
    ]


def test_the_toy_store_gets_every_unit_once(run: Any) -> None:
    folder, _ = run
    lines = (Path(folder) / "tape.txt").read_text().splitlines()
    store = LocalStore(folder / "self-play")
    units = [(i, u) for i in range(2) for u in range(store.manifest(i)["num_units"])]
    assert lines == [f"{i} {u} {store.report(i, u).pairs}" for i, u in units]


def test_the_toy_loss_is_trained_on(run: Any) -> None:
    _, log = run
    losses = [value for _, value in log["loss/train/total"]]
    assert losses[0] == pytest.approx(0, abs=1e-4)  # policy equals opponent: -m is 0, not log 2
    assert losses[-1] < -0.1  # and has no bound below


def test_the_toy_metrics_are_logged(run: Any) -> None:
    _, log = run
    shares = [float(value) for _, value in log["metrics/train/RealShare"]]
    assert all(0 <= share <= 1 for share in shares)
    assert [value for _, value in log["spin/longest_unit"]] == [5, 5]


def test_a_name_that_nobody_registered_is_refused_and_the_known_are_named() -> None:
    for settings in (
        {"loss": "margin"},
        {"generation": {"engine": "echo"}},
        {"remote_store": "tape:///tmp/tape"},
    ):
        with pytest.raises(InputError, match="must be"):
            SpinSettings(**settings)  # pyright: ignore[reportArgumentType]
    assert torch.isfinite(linear(*torch.randn(4, 3), beta=0.1)).all()
