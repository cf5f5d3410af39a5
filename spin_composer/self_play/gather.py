"""Whole parameters for the time of play: gathered once, not once per layer and token.

Within :func:`gathered` every rank holds the whole model and a forward pass makes no collective,
so that ranks generate independently of one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import xxhash
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP1

_SAMPLED_ELEMENTS = 4096


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
def _gathered_fsdp2(modules: list[Any]) -> Iterator[None]:
    states = [module._get_fsdp_state() for module in modules]
    groups = [s._fsdp_param_group for s in states if s._fsdp_param_group is not None]
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
    infos = (*handle.flat_param._param_infos, *handle.flat_param._shared_param_infos)
    shadowed = []
    for owner, name in [(info.module, info.param_name) for info in infos]:
        parameter = getattr(owner, name)
        if parameter.dtype != handle._fwd_bwd_param_dtype:
            # Beside the registered parameter, which is FSDP's: an instance's own attribute is
            # found before it.
            owner.__dict__[name] = parameter.detach().to(handle._fwd_bwd_param_dtype)
            shadowed.append((owner, name))
    try:
        yield
    finally:
        for owner, name in shadowed:
            owner.__dict__.pop(name, None)


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the parameters that the forward pass computes with.

    Hashes up to 4096 evenly spaced elements of every parameter: reading all of a 70B model
    would take minutes. Call it within :func:`gathered`; equal weights give equal fingerprints on
    any number of ranks.
    """
    digest = xxhash.xxh64()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: plain_name(item[0])):
        flat = parameter.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLED_ELEMENTS)
        # A copy always: numpy() would pin the storage that FSDP2 frees when it reshards.
        sample = flat[::stride].to("cpu", torch.float32, copy=True).contiguous()
        digest.update(plain_name(name))
        digest.update(str(tuple(parameter.shape)))
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def plain_name(name: str) -> str:
    """Return a parameter's name without the wrappers of FSDP1, DDP and checkpointing."""
    for wrapper in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    return name
