"""Gathered parameters: one rank alone can run the model, under FSDP1, FSDP2 and neither."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from composer.devices import DeviceCPU
from fixtures.ranks import on_ranks
from torch import nn
from torch.distributed import init_device_mesh
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor

from spin_composer.fsdp import (
    correct_gloo_average,
    gathered,
    iter_full_parameters,
    plain_name,
    reshard,
)
from spin_composer.model.fingerprint import fingerprint

HYBRID = "fsdp2 hybrid"
KINDS = [
    "fsdp1",
    "fsdp2",
    "fsdp1 hybrid",
    pytest.param(
        HYBRID,
        marks=pytest.mark.skipif(
            not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"),
            reason="torch 2.7's gloo cannot average over replicas",
        ),
    ),
]
"""How a net is sharded: over two ranks, or over two in each of two replicas."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.linear(x).tanh()


class Net(nn.Module):
    """Two blocks and a head; the wrapped part is an attribute, as in a ComposerModel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(Block(), Block(), nn.Linear(8, 5))

    def forward(self, x):
        return self.model(x)


def shard(net: Net, kind: str, dtype: torch.dtype | None = None) -> None:
    hybrid = kind.endswith("hybrid")
    mesh = init_device_mesh(
        "cpu",
        (2, 2) if hybrid else (2,),
        mesh_dim_names=("replicate", "shard") if hybrid else ("shard",),
    )
    if kind.startswith("fsdp1"):
        net.model = FullyShardedDataParallel(
            net.model,
            auto_wrap_policy=ModuleWrapPolicy({Block}),
            device_id=torch.device("cpu"),
            device_mesh=mesh if hybrid else None,
            sharding_strategy=ShardingStrategy.HYBRID_SHARD if hybrid else None,
            use_orig_params=True,
            mixed_precision=None if dtype is None else MixedPrecision(param_dtype=dtype),
        )
    else:
        policy = {"mp_policy": MixedPrecisionPolicy(param_dtype=dtype), "mesh": mesh}
        for block in net.model:
            if isinstance(block, Block):
                fully_shard(block, **policy)
        fully_shard(net, **policy)
        correct_gloo_average(SimpleNamespace(model=net, device=DeviceCPU()))  # pyright: ignore


def on_rank(rank: int, kind: str) -> tuple:
    net, x = Net(), torch.arange(16.0).view(2, 8) / 16
    wanted, mark = net(x).detach(), fingerprint(net)
    shard(net, kind)
    net(x).sum().backward()  # FSDP is past its lazy start when play begins
    same_mark = fingerprint(net) == mark
    with gathered(net), torch.no_grad():
        same_mark &= fingerprint(net) == mark
        # rank 0 alone: a collective in here would never return
        gap = float((net(x) - wanted).abs().max()) if rank == 0 else 0.0
    dist.barrier()
    net.zero_grad()
    net(x).sum().backward()  # still shards and reduces after
    gradient = next(net.parameters()).grad
    return (same_mark, gap, gradient is not None and bool(torch.isfinite(gradient).all()))


def in_bf16(rank: int, kind: str) -> tuple:
    net, x = Net(), torch.arange(6)
    net.model.insert(0, nn.Embedding(6, 8))  # FSDP casts what floats; a model's inputs are ids
    mark = fingerprint(net)
    shard(net, kind, torch.bfloat16)
    same_marks = [fingerprint(net) == mark]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        trained = net(x)  # FSDP's own forward: what training computes with
        with gathered(net):
            played = net(x)
            same_marks.append(fingerprint(net) == mark)
        again = net(x)
        same_marks.append(fingerprint(net) == mark)  # its root is whole after a forward
    reshard(net)
    masters = {p.dtype for p in net.parameters()}
    exact = torch.equal(trained, played) and torch.equal(trained, again)
    right = trained.dtype == torch.bfloat16 and exact and all(same_marks)
    return (right, masters == {torch.float32})


class Tied(Net):
    """A net whose embedding and head are one tensor, in the root's unit."""

    def __init__(self) -> None:
        super().__init__()
        self.model.insert(0, nn.Embedding(5, 8))
        self.model[-1].weight = self.model[0].weight


def whole_bytes(net: nn.Module) -> int:
    """Return what FSDP's roots hold gathered; nested units free theirs in every forward."""
    if isinstance(net.model, FullyShardedDataParallel):
        return net.model._handle.flat_param._full_param_padded.untyped_storage().nbytes()  # pyright: ignore
    whole = [p for p in net.parameters() if not isinstance(p, DTensor)]
    return sum(p.untyped_storage().nbytes() for p in whole)


def one_at_a_time(rank: int, kind: str) -> tuple:
    net, ids = Tied(), torch.arange(5)
    wanted = {whole.name: whole.tensor.clone() for whole in iter_full_parameters(net)}
    assert wanted.keys() == dict(net.named_parameters()).keys()
    shard(net, kind)
    with torch.no_grad():
        before = net(ids)
        held = whole_bytes(net)
        reshard(net)
        freed = held > 0 == whole_bytes(net)
        found = {whole.name: whole.tensor.clone() for whole in iter_full_parameters(net)}
        tied = sum(len(whole.owners) for whole in iter_full_parameters(net)) - len(found)
        same = found.keys() == wanted.keys()
        same = same and all(torch.equal(found[name], wanted[name]) for name in wanted)
        return (same, tied, freed, torch.equal(net(ids), before))


def reduced_gradients(rank: int, kind: str) -> float:
    world_size = dist.get_world_size()
    x = torch.arange(8.0 * world_size).view(world_size, 8) / 16
    alone = Net()
    alone(x).mean().backward()  # the mean of all ranks' losses
    net = Net()
    shard(net, kind)
    net(x[rank : rank + 1]).mean().backward()
    gaps = [
        float((a.grad - b.grad.full_tensor()).abs().max())
        for a, b in zip(alone.parameters(), net.parameters(), strict=True)
    ]
    norms = [nn.utils.clip_grad_norm_(n.parameters(), 1.0) for n in (alone, net)]
    return max(*gaps, float((norms[0] - norms[1].full_tensor()).abs()))


def on_all(body, kind: str) -> dict:
    world_size = 4 if kind.endswith("hybrid") else 2
    return on_ranks(partial(body, kind=kind), world_size, timeout_seconds=600, one_node=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_runs_the_gathered_model_alone_and_training_goes_on(kind):
    for rank, (same_mark, gap, trains) in on_all(on_rank, kind).items():
        assert same_mark, rank
        assert gap < 1e-6
        assert trains


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_plays_exactly_as_it_trains(kind):
    for rank, (exact, masters_kept) in on_all(in_bf16, kind).items():
        assert exact, rank
        assert masters_kept


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_read_one_at_a_time_whole_under_their_plain_names(kind):
    for rank, (same, tied, freed, trains) in on_all(one_at_a_time, kind).items():
        assert same, rank
        assert tied == 1
        assert freed
        assert trains


@pytest.mark.parametrize("kind", [KINDS[1], KINDS[3]])
def test_gradients_and_their_norm_are_those_of_one_process_though_gloo_has_no_average(kind):
    assert max(on_all(reduced_gradients, kind).values()) < 1e-6


def test_plain_names_are_those_of_the_model_before_activation_checkpointing():
    plain = {name for name, _ in Net().named_parameters()}
    net = Net()
    net.model[0] = checkpoint_wrapper(net.model[0])
    wrapped = {name for name, _ in nn.Module.named_parameters(net)}
    assert wrapped != plain
    assert {plain_name(name) for name in wrapped} == plain


def test_fingerprint_tells_weights_apart_and_leaves_them_resizable():
    net = Net()
    before = fingerprint(net)
    assert before == fingerprint(Net())
    with torch.no_grad():
        net.model[0].linear.bias[3] += 1e-3
    assert fingerprint(net) != before
    net.model[0].linear.bias.data.untyped_storage().resize_(0)
