"""Replicas of shards under FSDP2 (HSDP): two of two shards each come to what one process does."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Callback
from composer.core import State
from composer.utils.parallelism import FSDP2Config
from fixtures import models, tokenizers
from fixtures.ranks import on_ranks
from fixtures.runs import tiny_trainer
from fixtures.yaml_run import iteration_records, launch, tiny_config, write_config
from test_yaml_runs import assert_same_records, assert_same_store
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers import AutoModelForCausalLM

from spin_composer import HFSpinLM, HuggingFaceExporter
from spin_composer.hybrid_sharding import HybridFSDP2Config, keep_degrees
from spin_composer.train import train

REPLICAS = {"data_parallel_replicate_degree": 2}
STOPPED_AT = 18
"""The batch of the second iteration after which a run is stopped: its last save was at the 15th."""
HYBRID = [(2, 2), Replicate(), Shard(0)]
"""The mesh's shape, and how a parameter is placed along its dimensions."""
torch_can = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"),
    reason="torch 2.7's gloo cannot average over replicas",
)


class Stopped(Exception):
    """What ends a run of these tests between two batches."""


class Stop(Callback):
    """Ends a run after a batch, before its checkpoint is written."""

    def batch_end(self, state: State, logger: Any) -> None:
        del logger
        if int(state.timestamp.batch) == STOPPED_AT:
            raise Stopped


def run(folder: Path, rank: int | None = None, **settings: Any) -> Any:
    """Train in this process, of one or as a rank of four; return the Trainer."""
    tokenizer = tokenizers.byte_level()
    torch.manual_seed(0)
    model = HFSpinLM.from_model(models.tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    stop = [Stop()] if settings.pop("stops", False) else []
    trainer = tiny_trainer(
        folder if rank is None else folder / f"rank-{rank}",
        model,
        device_batch_size=4 if rank is None else 1,
        device_train_microbatch_size=1,
        optimizers=torch.optim.RMSprop(model.parameters(), lr=1e-3),
        spin={
            "store": str(folder / "self-play"),
            "iteration_length": settings.pop("iteration_length", "2ep"),
        },
        callbacks=[HuggingFaceExporter(str(folder / "hf")), *stop],
        save_folder=str(folder / "checkpoints"),
        save_interval="5ba",
        autoresume=True,
        **settings,
    )
    trainer.fit()
    return trainer


def run_hybrid(folder: str, checkpoints: str, rank: int, **settings: Any) -> list[Any]:
    """Be one of four ranks; return how the first parameter is placed on the mesh."""
    os.environ["FSDP_VERSION"] = "2"
    fsdp = {**REPLICAS, "state_dict_type": checkpoints}
    trainer = run(Path(folder), rank, parallelism_config={"fsdp": fsdp}, **settings)
    first = next(trainer.state.model.parameters())
    assert isinstance(first, DTensor)
    return [tuple(first.device_mesh.shape), *first.placements]


def on_four(folder: Path, checkpoints: str = "full", **settings: Any) -> dict[int, Any]:
    body = partial(run_hybrid, str(folder), checkpoints, **settings)
    return on_ranks(body, world_size=4, timeout_seconds=120, one_node=True)


def weights(folder: Path, iteration: int = 1) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder / f"hf/iter{iteration}").state_dict()


def assert_same_weights(one: Path, other: Path, iteration: int) -> None:
    """Sums over other ranks are rounded otherwise, and nothing else differs."""
    theirs = weights(other, iteration)
    for name, value in weights(one, iteration).items():
        assert (value - theirs[name]).norm() <= 1e-4 * value.norm(), name


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four ranks that was not stopped: its folder."""
    folder = tmp_path_factory.mktemp("hybrid")
    found = on_four(folder)
    assert list(found.values()) == 4 * [HYBRID], found
    return folder


@torch_can
def test_an_iteration_of_two_replicas_of_two_shards_is_that_of_one_process(tmp_path: Path) -> None:
    short = {"max_duration": "1iter", "iteration_length": "1ep"}
    found = on_four(tmp_path / "four", **short)
    assert list(found.values()) == 4 * [HYBRID], found
    run(tmp_path / "one", **short).close()
    assert_same_weights(tmp_path / "one", tmp_path / "four", iteration=0)


@torch_can
@pytest.mark.slow
def test_two_replicas_of_two_shards_give_the_store_losses_and_weights_of_one_process(
    hybrid: Path, tmp_path: Path
) -> None:
    run(tmp_path).close()
    assert_same_store(tmp_path, hybrid)
    assert_same_records(tmp_path, hybrid, rel=1e-5)
    assert_same_weights(tmp_path, hybrid, iteration=1)


@torch_can
@pytest.mark.slow
@pytest.mark.parametrize("checkpoints", ["full", "sharded"])
def test_a_stopped_run_of_replicas_goes_on_to_the_same_weights(
    hybrid: Path, checkpoints: str, tmp_path: Path
) -> None:
    stopped = on_four(tmp_path, checkpoints, stops=True)
    assert {outcome[0] for outcome in stopped.values()} == {"Stopped"}, stopped
    assert len(iteration_records(tmp_path)) == 1
    found = on_four(tmp_path, checkpoints)
    assert set(map(type, found.values())) == {list}, found
    assert_same_store(hybrid, tmp_path)
    assert_same_records(hybrid, tmp_path, rel=0)
    whole = weights(hybrid)
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path).items())


@torch_can
@pytest.mark.slow
@pytest.mark.foundry
def test_a_yaml_asks_for_replicas_as_under_fsdp1(tmp_path: Path) -> None:
    one = tiny_config(tmp_path / "one")
    train(write_config(one, tmp_path / "one.yaml"))
    config = tiny_config(tmp_path / "four", tmp_path / "one/model", device_train_microbatch_size=1)
    config["fsdp_config"] = {**REPLICAS, "sharding_strategy": "HYBRID_SHARD"}
    yaml = write_config(config, tmp_path / "four.yaml")
    result = launch("composer", "-m", "spin_composer.train", str(yaml), ranks=4)
    assert result.returncode == 0, result.stderr[-2000:]
    assert_same_store(tmp_path / "one", tmp_path / "four")
    assert_same_records(tmp_path / "one", tmp_path / "four", rel=1e-5)
    newest = (tmp_path / "four/checkpoints/latest-rank0.pt").resolve()
    names = sorted(path.name for path in newest.iterdir())
    assert names == [".metadata", "__0_0.distcp", "__1_0.distcp"]  # the first replica's


@pytest.mark.filterwarnings("ignore:FSDP2 Config/APIs are experimental")
def test_degrees_reach_composer_under_fsdp2_and_nothing_else_changes() -> None:
    keep_degrees()
    keep_degrees()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Attribute")  # of a setting that is dropped
        config = FSDP2Config.from_compatible_attrs({**REPLICAS, "state_dict_type": "full"})
        plain = FSDP2Config.from_compatible_attrs({"state_dict_type": "full"})
    assert isinstance(config, HybridFSDP2Config)
    assert config.data_parallel_replicate_degree == 2
    assert config.data_parallel_shard_degree == -1
    assert config.state_dict_type == "full"
    assert type(plain) is FSDP2Config
    with pytest.warns(UserWarning, match="'sharding_strategy: FULL_SHARD' is not a settable"):
        FSDP2Config.from_compatible_attrs({**REPLICAS, "sharding_strategy": "FULL_SHARD"})
