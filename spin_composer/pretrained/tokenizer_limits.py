"""Whether a tokenizer fits a model: every id that it can give has a row of the embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from spin_composer.errors import InputError, format_value
from spin_composer.pretrained.limits import ModelLimits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, limits: ModelLimits, may_resize: bool
) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for.

    Args:
        tokenizer: The run's.
        limits: Of the model.
        may_resize: The model's embedding is made as large as the tokenizer.

    Raises:
        InputError: A line for each problem.
    """
    lines = list(_find_problems(tokenizer, limits, may_resize))
    if lines:
        raise InputError("\n".join(lines))


def _find_problems(
    tokenizer: PreTrainedTokenizerBase, limits: ModelLimits, may_resize: bool
) -> Iterator[str]:
    size, pad = limits.vocabulary_size, limits.pad_token_id
    if size is None:
        return
    if pad is not None and not -size <= pad < size:
        yield (
            f"model: its config has pad_token_id={pad} and an embedding of {size} tokens. "
            "Set model.config_overrides.pad_token_id to the tokenizer's."
        )
    if may_resize:
        size = max(size, len(tokenizer))
    elif len(tokenizer) > size:
        yield (
            f"tokenizer: it has {len(tokenizer)} tokens, and the model's embedding {size}. Give "
            "the model's own tokenizer, or set model.allow_embedding_resizing=true."
        )
        return
    for name in ("eos_token", "pad_token", "bos_token", "unk_token"):
        token = getattr(tokenizer, f"{name}_id", None)
        if token is not None and not 0 <= token < size:
            yield (
                f"tokenizer: its {name} {format_value(getattr(tokenizer, name))} has id {token}, "
                f"and the model's embedding {size} tokens. Set tokenizer.kwargs.{name} to one that "
                "it has."
            )
