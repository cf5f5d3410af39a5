"""FSDP1 and FSDP2: whole parameters, all at once or one at a time.

The only module that uses torch's private names of FSDP.

Within :func:`gathered` every rank holds the whole model and a forward pass makes no collective,
so that ranks generate independently of one another. Where a server generates, the model stays
sharded, and :func:`iter_full_parameters` gathers one parameter after the other for
who must read them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1
from torch.distributed.fsdp._common_utils import TrainingState
from torch.distributed.fsdp._runtime_utils import _reshard
from torch.distributed.tensor import DTensor

from spin_composer.errors import InputError

Owner = tuple[nn.Module, str]
"""A module and the name under which it holds a parameter."""


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Hold every parameter of ``model`` whole on every rank; a collective at entry.

    Works for FSDP2 (``fully_shard``) and FSDP1 modules, and does nothing for others. Under
    FSDP2, torch 2.7 has no switch for resharding after forward: a parameter group reshards
    exactly if it has a ``post_forward_mesh_info``, which is taken away meanwhile.
    """
    fsdp2 = [m for m in model.modules() if isinstance(m, FSDPModule)]
    fsdp1 = [m for m in model.modules() if isinstance(m, FSDP1)]
    with ExitStack() as stack:
        if fsdp1:
            stack.enter_context(_gathered_fsdp1(model, fsdp1))
        if fsdp2:
            stack.enter_context(_gathered_fsdp2(fsdp2))
        yield


@contextmanager
def _gathered_fsdp2(modules: Sequence[FSDPModule]) -> Iterator[None]:
    groups = [_group(module) for module in modules]
    groups = [group for group in groups if group is not None]
    kept = [group.post_forward_mesh_info for group in groups]
    for group in groups:
        group.post_forward_mesh_info = None
    try:
        for module in modules:
            module.unshard()
        yield
    finally:
        for group, info in zip(groups, kept, strict=True):
            group.post_forward_mesh_info = info
        for module in modules:
            module.reshard()


@contextmanager
def _gathered_fsdp1(root: nn.Module, modules: list[FSDP1]) -> Iterator[None]:
    # FSDP1 forbids its own forward while parameters are summoned, so the wrapped modules are
    # called directly: their parameters are whole, and in the dtype that FSDP's forward would have
    # (its mixed precision), so that scores are those of training.
    with FSDP1.summon_full_params(root, writeback=False, recurse=True), ExitStack() as stack:
        for module in modules:
            stack.enter_context(_cast_as_in_forward(module))
            module.forward = module.module.__call__
            stack.callback(module.__dict__.pop, "forward", None)
        yield


@contextmanager
def _cast_as_in_forward(module: FSDP1) -> Iterator[None]:
    """Shadow a module's whole parameters by copies in the dtype of FSDP's forward, if another."""
    handle = module._handle
    if handle is None:
        yield
        return
    copies: list[tuple[list[Owner], Tensor]] = []
    for owners in _owners_fsdp1(handle):
        parameter = getattr(*owners[0])
        if parameter.dtype != handle._fwd_bwd_param_dtype:
            copies.append((owners, parameter.detach().to(handle._fwd_bwd_param_dtype)))
    with override_attributes(copies):
        yield


@contextmanager
def override_attributes(copies: list[tuple[list[Owner], Tensor]]) -> Iterator[None]:
    """Let modules' attributes be other tensors; the parameters stay registered as they are.

    An instance's own attribute is found before a registered parameter.
    """
    kept = []
    try:
        for owners, copy in copies:
            for module, name in owners:
                kept.append((module, name, module.__dict__.get(name)))
                module.__dict__[name] = copy
        yield
    finally:
        for module, name, before in reversed(kept):
            if before is None:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = before


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP, of either kind, has wrapped any part of a model."""
    return any(isinstance(module, (FSDPModule, FSDP1)) for module in model.modules())


def reshard(model: nn.Module) -> None:
    """Free what a forward without a backward leaves gathered: the parameters of FSDP's root."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
        elif isinstance(module, FSDP1) and (h := module._handle) and h.uses_sharded_strategy:
            _reshard(module, h, free_unsharded_flat_param=True)


@dataclass(frozen=True)
class FullParameter:
    """A whole parameter, and the modules that hold it (several where it is tied)."""

    name: str
    """Plain, as the first of its owners has it."""
    owners: list[Owner]
    tensor: Tensor


def iter_full_parameters(root: nn.Module) -> Iterator[FullParameter]:
    """Yield the parameters of ``root`` whole, one at a time; a collective for each under FSDP.

    They are those that the optimizer updates, not what mixed precision makes of them for a
    forward: the same numbers under FSDP1, FSDP2 and neither, on any number of ranks, within
    :func:`gathered` and without. No more than one FSDP1 unit, or one FSDP2 parameter, is whole at
    a time, if what is yielded is dropped before the next is asked for.

    Args:
        root: The outermost module that FSDP has wrapped, or one around it. All ranks must take
            all its parameters.
    """
    order = {id(m): (i, path) for i, (path, m) in enumerate(root.named_modules())}

    def whole(owners: list[Owner], tensor: Tensor) -> FullParameter:
        # What FSDP takes for a tied parameter's first owner need not be the plain model's.
        owners = sorted(owners, key=lambda owner: order[id(owner[0])][0])
        path = order[id(owners[0][0])][1]
        return FullParameter(plain_name(f"{path}.{owners[0][1]}".lstrip(".")), owners, tensor)

    managed: set[tuple[int, str]] = set()
    for module in list(root.modules()):
        for context, parameters in _managed_parameters(module):
            with context:
                for owners, read in parameters:
                    managed.update((id(owner), name) for owner, name in owners)
                    yield whole(owners, read())
    others: dict[int, tuple[nn.Parameter, list[Owner]]] = {}
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and (id(module), name) not in managed:
                others.setdefault(id(parameter), (parameter, []))[1].append((module, name))
    for parameter, owners in others.values():
        yield whole(owners, _full_tensor(parameter))


_Parameters = list[tuple[list[Owner], Callable[[], Tensor]]]


def _managed_parameters(
    module: nn.Module,
) -> Iterator[tuple[AbstractContextManager[object], _Parameters]]:
    """Yield the parameters that FSDP manages for a module, and the context that they are whole in.

    Each comes with its owners and a function that returns it.
    """
    if isinstance(module, FSDPModule) and (group := _group(module)) is not None:
        parameters: _Parameters = []
        for fsdp_param in group.fsdp_params:
            info = fsdp_param._module_info
            owners = [(info.module, info.param_name)]
            owners += zip(info.shared_modules, info.shared_param_names, strict=True)
            # What the module holds is the gathered one in the middle of a gathering.
            held = getattr(*owners[0])
            shard = held if isinstance(held, DTensor) else fsdp_param.sharded_param
            parameters.append((owners, lambda shard=shard: _full_tensor(shard)))
        yield nullcontext(), parameters
    elif isinstance(module, FSDP1) and module._handle is not None:
        summoned = module.training_state == TrainingState.SUMMON_FULL_PARAMS
        context: AbstractContextManager[object] = (
            nullcontext()
            if summoned
            else FSDP1.summon_full_params(module, recurse=False, writeback=False)
        )
        # Registered ones: beside them may stand a copy in the forward's dtype (gathered).
        yield (
            context,
            [
                (owners, lambda at=owners[0]: cast(Tensor, at[0]._parameters[at[1]]))
                for owners in _owners_fsdp1(module._handle)
            ],
        )


def _owners_fsdp1(handle: Any) -> list[list[Owner]]:
    """Return the owners of each parameter of a handle."""
    flat = handle.flat_param
    owners = {(id(i.module), i.param_name): [(i.module, i.param_name)] for i in flat._param_infos}
    for info in flat._shared_param_infos:
        first = (id(info.prim_module), info.prim_param_name)
        owners[first].append((info.module, info.param_name))
    return list(owners.values())


def _group(module: FSDPModule) -> Any:
    """Return FSDP2's parameter group of a module; None if it has no parameters of its own."""
    return module._get_fsdp_state()._fsdp_param_group


def _full_tensor(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module that FSDP1 has wrapped, or ``model`` itself if it is not wrapped."""
    return getattr(model, "_fsdp_wrapped_module", model)


def plain_name(name: str) -> str:
    """Return a parameter's name without the wrappers of FSDP1 and of activation checkpointing."""
    for wrapper in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    return name


def correct_gloo_average(state: State) -> None:
    """Let FSDP2 average gradients by sums on a CPU, whose backend, gloo, has no average.

    Its averaging reduce-scatter sums (pytorch#162338), and gradients would be too large by the
    number of ranks; its averaging all-reduce, which replicas of shards need, raises.

    Raises:
        InputError: If torch, before 2.8, cannot be told to, and there are replicas of shards.
    """
    modules = [m for m in state.model.modules() if isinstance(m, FSDPModule)]
    if not modules or dist.get_world_size() == 1 or state.device.name != "cpu":
        return
    if hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        for module in cast("list[Any]", modules):
            module.set_force_sum_reduction_for_comms(True)
        return
    if any(isinstance(p, DTensor) and p.device_mesh.ndim > 1 for p in state.model.parameters()):
        raise InputError(
            f"fsdp_config.data_parallel_replicate_degree on a CPU needs torch 2.8, and this is "
            f"{torch.__version__}, whose gloo cannot average over replicas. Remove it."
        )
    world_size = dist.get_world_size()

    def divide(gradient: Tensor) -> None:
        gradient.div_(world_size)

    for module in modules:
        module.set_all_reduce_hook(divide)
