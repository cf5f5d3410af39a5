"""A model's tensors whole and on the CPU, under the names that a Hugging Face folder has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from spin_composer.fsdp import Owner, iter_full_parameters, override_attributes, plain_name
from spin_composer.model.adapters import merged_weight
from spin_composer.model.trained import trainable_names
from spin_composer.model.unwrap import inner_model


def plain_state(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    root: nn.Module | None = None,
    keep: bool = True,
) -> dict[str, Tensor]:
    """Return a model's state dict on the CPU, under plain names, adapters merged.

    A collective under FSDP, of which no rank holds more than one part whole. ``state_dict()``
    itself would give the shards. Tensors that are tied stay one.

    Args:
        model: A Hugging Face causal LM, or a PEFT model of one.
        dtype: Of floating-point tensors; None keeps the parameters'.
        root: The outermost module that FSDP has wrapped; None: ``model``.
        keep: Return the state; ranks that do not need it take part, and return an empty one.
    """
    # Adapters are merged in the parameters' precision.
    early = None if hasattr(model, "peft_config") else dtype
    copies = _copies(model if root is None else root, early, lambda owners: keep)
    if not keep:
        return {}
    with override_attributes(copies):
        named = list(_tensors(model, _held(copies)))
    # By id of the first, so that what is tied stays tied; ``named`` keeps them alive.
    final = {id(t): t.detach().to("cpu", _dtype_of(t, dtype)).contiguous() for _, t in named}
    return {name: final[id(tensor)] for name, tensor in named}


def adapter_state(
    model: nn.Module,
    dtype: torch.dtype | None = None,
    root: nn.Module | None = None,
    keep: bool = True,
) -> dict[str, Tensor]:
    """Return what PEFT saves of a model: adapters, other trained parameters, embeddings.

    The embeddings, because PEFT also saves those that hold added tokens. A collective under FSDP.

    Args:
        model: A PEFT model.
        dtype: As of :func:`plain_state`.
        root: As of :func:`plain_state`.
        keep: As of :func:`plain_state`.

    Returns:
        The tensors on the CPU, under the names of the PEFT model's own state dict.
    """
    paths = {id(module): plain_name(f"{path}.") for path, module in model.named_modules()}
    trained, inner = trainable_names(model), inner_model(model)
    embeddings = {
        id(module)
        for layer in (inner.get_input_embeddings(), inner.get_output_embeddings())
        if layer is not None
        for module in layer.modules()
    }

    def is_saved(owner: Owner) -> bool:
        module, name = owner
        path = f"{paths[id(module)]}{name}".lstrip(".")
        return "lora_" in path or path in trained or id(module) in embeddings

    def any_is_saved(owners: list[Owner]) -> bool:
        return keep and any(is_saved(owner) for owner in owners if id(owner[0]) in paths)

    copies = _copies(model if root is None else root, dtype, any_is_saved)
    return {
        f"{paths[id(module)]}{name}".lstrip("."): tensor
        for owners, tensor in copies
        for module, name in owners
        if id(module) in paths
    }


_Copies = list[tuple[list[Owner], Tensor]]


def _copies(
    root: nn.Module, dtype: torch.dtype | None, is_wanted: Callable[[list[Owner]], bool]
) -> _Copies:
    """Return copies of the wanted parameters on the CPU; a collective under FSDP."""
    copies: _Copies = []
    for whole in iter_full_parameters(root):
        if is_wanted(whole.owners):
            # Always a copy: FSDP frees the storage.
            to = _dtype_of(whole.tensor, dtype)
            copies.append((whole.owners, whole.tensor.to("cpu", to, copy=True).contiguous()))
        del whole  # or it would be there beside the next
    return copies


def _held(copies: _Copies) -> dict[int, dict[str, Tensor]]:
    """Return copies by the id of the module that holds them, and by name."""
    held: dict[int, dict[str, Tensor]] = {}
    for owners, tensor in copies:
        for module, name in owners:
            held.setdefault(id(module), {})[name] = tensor
    return held


def _dtype_of(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _tensors(model: nn.Module, held: dict[int, dict[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield names, as in the model without adapters and wrappers, and tensors, ties twice."""
    prefix = "base_model.model." if hasattr(model, "peft_config") else ""
    for path, module in model.named_modules(remove_duplicate=False):
        path = plain_name(f"{path}.").removeprefix(prefix)
        parts = [part for part in path.split(".") if part]
        if "original_module" in parts or any(part.startswith("lora_") for part in parts):
            continue
        if "modules_to_save" in parts:  # the trained copy of a whole module
            at = parts.index("modules_to_save")
            if at + 1 >= len(parts):
                continue
            parts = parts[:at] + parts[at + 2 :]
        merged = merged_weight(module)
        if merged is not None:
            yield ".".join([*parts, "weight"]), merged.to(module.base_layer.weight.dtype)  # pyright: ignore
        adapted = parts[-1:] == ["base_layer"]
        parts = [part for part in parts if part != "base_layer"]
        for name, tensor in _own(module, held):
            if not (adapted and name == "weight"):
                yield ".".join([*parts, name]), tensor


def _own(module: nn.Module, held: dict[int, dict[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's own parameters, whole, and its persistent buffers."""
    yield from held.get(id(module), {}).items()
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer
