"""Checkpoints and exports, counted and sized."""

from __future__ import annotations

from typing import Any

import pytest

from spin_composer.forecast.game import Iteration
from spin_composer.forecast.outputs import checkpoint_bytes, export_bytes, num_checkpoints
from spin_composer.forecast.parameters import Parameters
from spin_composer.settings.spin import SpinSettings

GAME = [Iteration(100, 100, 0, 10, 20)] * 3
WHOLE = Parameters(1000, 1000, 4, None)
LORA = Parameters(1000, 10, 4, None)
PEFT = {"peft_config": {"r": 8}}


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"save_interval": "1iter"}, 3),
        ({"save_interval": "1ep"}, 6),
        ({"save_interval": "10ba"}, 9),
        ({"save_interval": "1ep", "save_num_checkpoints_to_keep": 2}, 2),
        ({"save_interval": "1iter", "save_num_checkpoints_to_keep": -1}, 3),
    ],
)
def test_so_many_checkpoints_are_kept_at_most(config: Any, count: int):
    assert num_checkpoints(config, SpinSettings(iteration_length="2ep"), GAME) == count


def test_a_checkpoint_holds_weights_and_the_optimizers_state():
    adam: dict[str, Any] = {"optimizer": {"name": "decoupled_adamw"}, "model": {}}
    assert checkpoint_bytes(adam, WHOLE) == 12 * 1000
    assert checkpoint_bytes(adam | {"model": PEFT}, LORA) == 12 * 10
    whole = {**PEFT, "should_save_peft_only": False}
    assert checkpoint_bytes(adam | {"model": whole}, LORA) == 4 * 1000 + 8 * 10
    assert checkpoint_bytes(adam | {"save_weights_only": True}, WHOLE) == 4 * 1000
    assert checkpoint_bytes({"optimizer": {"name": "mine"}, "model": {}}, WHOLE) is None


@pytest.mark.parametrize(
    ("exporter", "found", "size"),
    [
        ({"precision": "bfloat16"}, WHOLE, 2000),
        ({}, WHOLE, 4000),
        ({}, LORA, 40),
        ({"merge_adapters": True}, LORA, 4000),
        ({}, None, None),
    ],
)
def test_an_export_is_as_large_as_what_it_holds(exporter: Any, found: Any, size: int | None):
    assert export_bytes(exporter, found) == size
