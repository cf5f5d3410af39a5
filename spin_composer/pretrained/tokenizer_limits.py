"""Whether a tokenizer can encode text, always alike, and fits a model: each id has an embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spin_composer.errors import InputError, format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spin_composer.pretrained.limits import ModelLimits  # imports Composer

_FEWEST_WORDS = 2


def check_encoding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that cannot encode text, or encodes it differently each time.

    Of a folder without a tokenizer's files newer transformers make one of special tokens alone.

    Raises:
        InputError: Names the tokenizer and what to do; a line for each problem.
    """
    if lines := list(_find_encoding_problems(tokenizer)):
        raise InputError("\n".join(lines))


def _find_encoding_problems(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for line in (_vocabulary_problem(tokenizer), _dropout_problem(tokenizer)):
        if line is not None:
            yield line


def _dropout_problem(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the message for BPE dropout: each rank and each start would have other ids."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)  # None: a slow one
    dropout = getattr(getattr(backend, "model", None), "dropout", None)
    if not dropout:
        return None
    return (
        f"tokenizer={format_value(tokenizer.name_or_path)}: its BPE leaves out merges at random "
        f"(model.dropout={dropout:g}), so that the same text has other ids each time. Set "
        "model.dropout to null in its tokenizer.json."
    )


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
    if lines := list(_find_encoding_problems(tokenizer)):
        yield from lines
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
