"""Whether the output layer is the input embedding: what weights are, and what the config says."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def say_what_is_tied(model: nn.Module, is_base: bool) -> None:
    """Make a model's config say whether its output layer and its embedding are one parameter.

    A config that says "tied" of two makes every folder that is exported load without the second.

    Args:
        model: A Hugging Face causal LM.
        is_base: It lies under adapters, whose copies are not its own: it is left as it is.
    """
    config: Any = model.config
    if is_base or not getattr(config, "tie_word_embeddings", False):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # pyright: ignore
    weights = [getattr(layer, "weight", None) for layer in (head, embedding)]
    if any(weight is None for weight in weights) or weights[0] is weights[1]:
        return
    config.tie_word_embeddings = False
    log.warning(
        f"{type(model).__name__}: its output layer is no longer its embedding, and its config "
        "says tie_word_embeddings=true. It is set to false."
    )


def fit_config(config: Any, twin: Any, state: dict[str, Tensor]) -> bool:
    """Make a config, and a state, say the same of what is tied and of the vocabulary's size.

    Args:
        config: A copy, changed in place.
        twin: A model without weights made of it.
        state: Names and tensors of what is exported; tied ones are one tensor. Where the config
            ties nothing they are made two, in place.

    Returns:
        Whether the config was changed, so that the twin must be made again.
    """
    paths = {id(module): path for path, module in twin.named_modules(remove_duplicate=False)}
    layers = (twin.get_output_embeddings(), twin.get_input_embeddings())
    if any(layer is None for layer in layers) or layers[0] is layers[1]:
        return False
    head, embedding = (f"{paths[id(layer)]}.weight" for layer in layers)
    if head not in state or embedding not in state:
        return False
    changed = False
    same = state[head] is state[embedding]
    if config.tie_word_embeddings and not same and not torch.equal(state[head], state[embedding]):
        config.tie_word_embeddings, changed = False, True
    elif not config.tie_word_embeddings and same:
        state[head] = state[head].clone()
    rows = state[embedding].shape[0]
    if getattr(config, "vocab_size", rows) != rows:
        config.vocab_size, changed = rows, True
    return changed
