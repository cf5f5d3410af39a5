"""Whether a tokenizer holds a vocabulary, and fits a model: each of its ids has an embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from spin_composer.errors import InputError, format_value
from spin_composer.pretrained.limits import ModelLimits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FEWEST_WORDS = 2


def check_vocabulary(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that no text can be written with, as newer transformers make them.

    Of a folder without a tokenizer's files they make one of special tokens alone.

    Raises:
        InputError: Names the folder and what to do.
    """
    if (line := _vocabulary_problem(tokenizer)) is not None:
        raise InputError(line)


def _vocabulary_problem(tokenizer: PreTrainedTokenizerBase) -> str | None:
    special = {*tokenizer.all_special_tokens}
    special |= {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    words = len(tokenizer.get_vocab().keys() - special)
    if words >= _FEWEST_WORDS:
        return None
    return (
        f"tokenizer={format_value(tokenizer.name_or_path)}: it has {words} tokens beside special "
        "ones, so no text can be written with it. A folder without a tokenizer's files gives such "
        "a one: save the model's there (tokenizer.save_pretrained), or name another."
    )


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, limits: ModelLimits, may_resize: bool
) -> None:
    """Reject a tokenizer with ids that the model has no embedding for.

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
    if (line := _vocabulary_problem(tokenizer)) is not None:
        yield line
        return
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
            "the model's own tokenizer, or set model.allow_embedding_resizing=true (of a model in "
            "memory: call its resize_token_embeddings first)."
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
