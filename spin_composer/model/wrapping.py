"""What FSDP and activation checkpointing wrap of a causal LM, and how weights on meta are made.

Composer asks the Hugging Face model for three functions: ``fsdp_wrap_fn``,
``activation_checkpointing_fn`` and ``param_init_fn``. What is not wrapped stays in the root's unit:
the embedding and the output layer, which may be tied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spin_composer.model.unwrap import inner_model

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

_ZERO_CENTERED = ("Gemma", "RecurrentGemma")
"""Beginnings of the names of transformers 4.51's norms that multiply by one more than a weight."""

_ALONE = "spin_wrapped_alone"
"""Marks a module that is a unit of its own."""


def prepare_for_fsdp(model: PreTrainedModel | PeftModel) -> None:
    """Give a model the functions that Composer asks for; call it after LoRA and resizing.

    Args:
        model: A Hugging Face causal LM, or a PeftModel around one.
    """
    blocks = block_classes(inner_model(model))
    for layer in _tied(inner_model(model)):
        if hasattr(layer, "_fsdp_wrap"):  # MPT asks for it whether they are tied or not
            layer._fsdp_wrap = False  # type: ignore[assignment, union-attr]
    for name, module in model.named_modules():
        if _is_adapter(model, name, module):
            module.__dict__[_ALONE] = True  # of the module itself, so that a copy keeps it

    def is_block(module: nn.Module) -> bool:
        return isinstance(module, blocks)

    def is_wrapped(module: nn.Module) -> bool:
        return is_block(module) or getattr(module, _ALONE, False)

    given: Any = model
    given.fsdp_wrap_fn = is_wrapped
    given.activation_checkpointing_fn = is_block
    given.param_init_fn = _initializer(inner_model(model))


def block_classes(model: PreTrainedModel) -> tuple[type[nn.Module], ...]:
    """Return the classes of a model's layers, those that hold all but embedding, norm and head.

    They are the classes that the model names in ``_no_split_modules`` and keeps in lists; of a
    model that names none, those of its longest list of modules.
    """
    named = set(model._no_split_modules or ())
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    found = {type(layer): None for layers in lists for layer in layers}
    blocks = tuple(cls for cls in found if cls.__name__ in named)
    if not blocks and lists:
        longest = max(lists, key=len)  # the first, and so the outermost, of several
        blocks = tuple({type(layer): None for layer in longest})
        log.info(
            "%s names no layers for FSDP: those of its longest list are wrapped, %s",
            type(model).__name__,
            ", ".join(cls.__name__ for cls in blocks),
        )
    return blocks


def _tied(model: PreTrainedModel) -> list[nn.Module | None]:
    """Return embedding and output layer if they are one tensor, which must stay in one unit."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = getattr(model.config, "tie_word_embeddings", False)
    weights = [getattr(layer, "weight", None) for layer in layers]
    return layers if tied or (weights[0] is not None and weights[0] is weights[1]) else []


def _is_adapter(model: PreTrainedModel | PeftModel, name: str, module: nn.Module) -> bool:
    """Return whether a module holds adapters' weights: FSDP1 does not mix them with frozen ones."""
    if not getattr(model, "peft_config", None):
        return False
    adapted = cast("PeftModel", model)
    name = name.lower()
    kinds = {str(getattr(c.peft_type, "value", c.peft_type)) for c in adapted.peft_config.values()}
    active = any(adapter.lower() in name for adapter in adapted.active_adapters)
    holds = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
    return holds and active and any(kind.lower() in name for kind in kinds)


def _initializer(model: PreTrainedModel) -> Callable[[nn.Module], None]:
    """Return a function that initializes a module's own parameters as the model does.

    FSDP calls it for modules whose parameters were on meta and have storage now, but no values.
    """

    @torch.no_grad()
    def initialize(module: nn.Module) -> None:
        own = dict(module.named_parameters(recurse=False))
        for parameter in own.values():
            parameter.fill_(float("nan"))  # what is NaN afterward was not initialized
        model._init_weights(module)
        for name, parameter in own.items():
            if _has_nan(parameter):
                _initialize_skipped(module, name, parameter)

    return initialize


def _has_nan(parameter: Tensor) -> bool:
    return bool(torch.isnan(parameter).any())


def _initialize_skipped(module: nn.Module, name: str, parameter: Tensor) -> None:
    """Initialize what transformers 4 leaves to the norm's constructor; name anything else."""
    kind = type(module).__name__
    if "Norm" in kind:
        parameter.fill_(0.0 if name == "bias" or kind.startswith(_ZERO_CENTERED) else 1.0)
    else:
        log.warning(
            f"{kind}.{name}: its model does not initialize it; it is NaN until weights are loaded."
        )
