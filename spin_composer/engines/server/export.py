"""The opponent as a Hugging Face folder, for a completion server to load."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig

from spin_composer.engines.server.settings import CUSTOM_CLASS, unservable_message
from spin_composer.errors import InputError
from spin_composer.export.folder import save_model, written_aside
from spin_composer.export.state import plain_state
from spin_composer.model.adapters import unsupported_adapters
from spin_composer.model.unwrap import inner_model, plain_class

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
    with written_aside(folder) as aside:
        _save(model, tokenizer, stop_token_id, state or plain_state(model, dtype), aside)
        (aside / _MARK).write_text(_mark(stop_token_id, opponent, dtype), encoding="utf-8")


def is_exported(stop_token_id: int, opponent: str, dtype: torch.dtype | None, folder: Path) -> bool:
    """Return whether a folder holds an opponent already; arguments as of the export."""
    path = folder / _MARK
    if not path.exists():
        return False
    return path.read_text(encoding="utf-8") == _mark(stop_token_id, opponent, dtype)


def _mark(stop_token_id: int, opponent: str, dtype: torch.dtype | None) -> str:
    return json.dumps({"opponent": opponent, "stop_token_id": stop_token_id, "dtype": str(dtype)})


def check_exportable(model: PreTrainedModel | PeftModel) -> None:
    """Reject a model that servers would not load, or would load as another one.

    Raises:
        InputError: Names the model's class.
    """
    cls = plain_class(inner_model(model))
    if not cls.__module__.startswith("transformers."):
        raise InputError(unservable_message(f"a {cls.__name__}", CUSTOM_CLASS))
    if kinds := unsupported_adapters(model):
        why = "they are not merged into the exported weights"
        raise InputError(unservable_message(f"adapters of kind {', '.join(kinds)}", why))


def _save(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    stop_token_id: int,
    state: dict[str, Tensor],
    folder: Path,
) -> None:
    check_exportable(model)
    config = copy.deepcopy(inner_model(model).config)
    config.eos_token_id, config.use_cache = stop_token_id, True
    generation = GenerationConfig(
        do_sample=True, top_k=0, eos_token_id=stop_token_id, pad_token_id=stop_token_id
    )
    save_model(model, state, config, generation, folder)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop_token_id)  # pyright: ignore
    tokenizer.save_pretrained(folder)
