"""Memory per GPU by arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from spin_composer.forecast.memory import memory_section, num_shards, optimizer_numbers
from spin_composer.forecast.parameters import Parameters
from spin_composer.settings.spin import SpinSettings

BILLION = Parameters(total=10**9, trained=10**9, weight_bytes=4, cache_numbers=1000)


def figures(gpus: int, found: Parameters | None = BILLION, **config: Any) -> dict[str, Any]:
    cfg = {"optimizer": {"name": "decoupled_adamw"}, "precision": "amp_bf16", **config}
    spin = SpinSettings(generation={"max_new_tokens": 50, "batch_size": 10})
    section = memory_section(cfg, spin, found, gpus, 100)
    return {one.name: one.value for one in section.figures}


@pytest.mark.parametrize(
    ("fsdp", "gpus", "shards"),
    [
        (None, 8, 1),
        ({"sharding_strategy": "FULL_SHARD"}, 8, 8),
        ({"sharding_strategy": "FULL_SHARD"}, 1, 1),
        ({"sharding_strategy": "NO_SHARD"}, 8, 1),
        ({"data_parallel_replicate_degree": 4}, 32, 8),
        ({"data_parallel_shard_degree": 2}, 8, 2),
        ({"data_parallel_replicate_degree": 4, "data_parallel_shard_degree": -1}, 8, 2),
    ],
)
def test_a_copy_of_the_weights_is_spread_over_so_many_gpus(fsdp: Any, gpus: int, shards: int):
    assert num_shards(fsdp, gpus) == shards


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [
        ({"name": "rmsprop"}, 1),
        ({"name": "rmsprop", "momentum": 0.9, "centered": True}, 3),
        ({"name": "decoupled_adamw"}, 2),
        ({"name": "decoupled_lionw"}, 1),
        ({"name": "mine"}, None),
    ],
)
def test_an_optimizer_keeps_so_many_numbers_per_parameter(optimizer: Any, numbers: int | None):
    assert optimizer_numbers(optimizer) == numbers


def test_one_gpu_holds_everything_and_the_weights_in_16_bits():
    found = figures(1)
    assert found["training at least bytes"] == (4 + 4 + 8 + 2) * 10**9
    assert found["KV cache bytes"] == 1000 * 2 * 10 * 100
    assert found["play at least bytes"] == 6 * 10**9 + found["KV cache bytes"]


def test_eight_gpus_hold_an_eighth_each_and_the_whole_model_in_play():
    found = figures(8, fsdp_config={"sharding_strategy": "FULL_SHARD"})
    assert found["training at least bytes"] == (4 + 4 + 8) * 10**9 // 8
    assert found["whole model in play bytes"] == 2 * 10**9


def test_what_is_unknown_is_said_to_be():
    assert figures(1, optimizer={"name": "mine"})["optimizer bytes"] is None
    assert figures(1, found=None) == {"bytes": None}
