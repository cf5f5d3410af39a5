"""The opponent as a Hugging Face folder, for a completion server to load."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from spin_composer.errors import InputError
from spin_composer.fsdp import Owner, each_whole, plain_name, shadowed
from spin_composer.model.adapters import merged_weight, unsupported_adapters
from spin_composer.model.tying import match_config_to_state
from spin_composer.model.unwrap import inner_model, plain_class
from spin_composer.settings.server import FOREIGN_CLASS, cannot_serve
from spin_composer.store.durable import fsync, write_atomically
from spin_composer.store.layout import temporary_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MARK = "spin_opponent.json"


def export_opponent(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_id: int,
    opponent: str,
    dtype: torch.dtype | None,
    folder: Path,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a model and its tokenizer to ``folder``; once.

    A folder that holds this opponent already is left as it is. The folder's only EOS, in the
    configs and the tokenizer alike, is the run's stop token, so that every server ends responses
    where the run does; its generation config is neutral.

    Args:
        model: A Hugging Face causal LM, or a PEFT model of one, whose adapters are merged.
        tokenizer: The run's.
        stop_token_id: The one token that ends a response.
        opponent: Fingerprint of the model, kept beside the weights.
        dtype: Of floating-point weights in the files; None keeps the parameters'.
        folder: Where to; it is there whole or not at all.
        state: The model's :func:`plain_state`, which under FSDP all ranks read together; None: it
            is read here.

    Raises:
        InputError: If the model is of a kind that cannot be exported.
    """
    if is_exported(stop_token_id, opponent, dtype, folder):
        return
    mark = _mark(stop_token_id, opponent, dtype)
    aside = folder.with_name(temporary_name(folder.name))
    try:
        _save(model, tokenizer, stop_token_id, state or plain_state(model, dtype), aside)
        for path in aside.iterdir():
            fsync(path)
        write_atomically(aside / _MARK, mark)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(aside, folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_exported(stop_token_id: int, opponent: str, dtype: torch.dtype | None, folder: Path) -> bool:
    """Tell whether a folder holds an opponent already; arguments as of the export."""
    path = folder / _MARK
    if not path.exists():
        return False
    return path.read_text(encoding="utf-8") == _mark(stop_token_id, opponent, dtype)


def _mark(stop_token_id: int, opponent: str, dtype: torch.dtype | None) -> str:
    return json.dumps({"opponent": opponent, "stop_token_id": stop_token_id, "dtype": str(dtype)})


def check_exportable(model: PreTrainedModel | PeftModel) -> None:
    """Refuse a model that servers would not load, or would load as another one.

    Raises:
        InputError: Names the model's class.
    """
    cls = plain_class(inner_model(model))
    if not cls.__module__.startswith("transformers."):
        raise InputError(cannot_serve(f"a {cls.__name__}", FOREIGN_CLASS))
    if kinds := unsupported_adapters(model):
        why = "they are not merged into the exported weights"
        raise InputError(cannot_serve(f"adapters of kind {', '.join(kinds)}", why))


def _save(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_id: int,
    state: dict[str, Tensor],
    folder: Path,
) -> None:
    check_exportable(model)
    base = inner_model(model)
    config = copy.deepcopy(base.config)
    config.eos_token_id, config.use_cache = stop_token_id, True
    with torch.device("meta"):
        # A twin without weights: save_pretrained would change the config of the model itself.
        twin = plain_class(base)(config)
        if match_config_to_state(config, twin, state):
            twin = plain_class(base)(config)
    wanted = set(twin.state_dict())
    if state.keys() != wanted:
        wrong = sorted(state.keys() ^ wanted)
        raise RuntimeError(f"the opponent cannot be exported: it has, or lacks, {wrong[:3]}.")
    # The twin's config gets the dtype of its own parameters.
    dtype = next(t.dtype for t in state.values() if t.is_floating_point())
    twin.to(dtype)  # pyright: ignore[reportArgumentType]  (transformers' decorator hides self)
    twin.generation_config = GenerationConfig(
        do_sample=True, top_k=0, eos_token_id=stop_token_id, pad_token_id=stop_token_id
    )
    twin.save_pretrained(folder, state_dict=state)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop_token_id)  # pyright: ignore
    tokenizer.save_pretrained(folder)


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
    copies: list[tuple[list[Owner], Tensor]] = []
    for whole in each_whole(model if root is None else root):
        if keep:
            # Always a copy: FSDP frees the storage.
            to = _dtype_of(whole.tensor, early)
            copies.append((whole.owners, whole.tensor.to("cpu", to, copy=True).contiguous()))
        del whole  # or it would be there beside the next
    if not keep:
        return {}
    held: dict[int, dict[str, Tensor]] = {}  # by id of the module
    for owners, tensor in copies:
        for module, name in owners:
            held.setdefault(id(module), {})[name] = tensor
    with shadowed(copies):
        named = list(_tensors(model, held))
    # By id of the first, so that what is tied stays tied; ``named`` keeps them alive.
    final = {id(t): t.detach().to("cpu", _dtype_of(t, dtype)).contiguous() for _, t in named}
    return {name: final[id(tensor)] for name, tensor in named}


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
