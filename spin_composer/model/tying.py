"""Tied embeddings: make a config agree with the weights."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


def correct_tied_flag(model: PreTrainedModel, has_adapters: bool) -> None:
    """Set ``tie_word_embeddings`` of a model's config to false if its weights are not tied.

    From an exported folder with tied embeddings only one of the two parameters is loaded.

    Args:
        model: A Hugging Face causal LM.
        has_adapters: PEFT wraps the model; its copies of the layers are not the model's own, so
            the config is left alone.
    """
    config = model.config
    if has_adapters or not getattr(config, "tie_word_embeddings", False):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    weights = [getattr(layer, "weight", None) for layer in (head, embedding)]
    if any(weight is None for weight in weights) or weights[0] is weights[1]:
        return
    config.tie_word_embeddings = False
    log.warning(
        f"{type(model).__name__}: its output layer is no longer its embedding, and its config "
        "says tie_word_embeddings=true. It is set to false."
    )


def match_config_to_state(
    config: PretrainedConfig, skeleton: PreTrainedModel, state: dict[str, Tensor]
) -> bool:
    """Make a config and a state dict agree on tied embeddings and on the vocabulary's size.

    Args:
        config: A copy, changed in place.
        skeleton: A model made from it, without weights.
        state: Names and tensors that are exported; tied parameters are one tensor. If the config
            does not tie them, they are copied, in place.

    Returns:
        Whether the config was changed, so that the skeleton must be made again.
    """
    paths = {id(module): path for path, module in skeleton.named_modules(remove_duplicate=False)}
    layers = (skeleton.get_output_embeddings(), skeleton.get_input_embeddings())
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
