"""Whether tokenizer and rows fit a model: its embedding, its positions and one whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from spin_composer.errors import InputError, shown
from spin_composer.pretrained.limits import ModelLimits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spin_composer.data.examples import ExampleDataset


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
    lines = list(_misfits(tokenizer, limits, may_resize))
    if lines:
        raise InputError("\n".join(lines))


def _misfits(
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
                f"tokenizer: its {name} {shown(getattr(tokenizer, name))} has id {token}, and the "
                f"model's embedding {size} tokens. Set tokenizer.kwargs.{name} to one that it has."
            )


def check_rows(
    examples: ExampleDataset, limits: ModelLimits, max_new_tokens: int, where: str = "train_loader"
) -> None:
    """Refuse rows, or responses to them, that the model has no positions or embeddings for.

    Args:
        examples: The SFT set.
        limits: Of the model.
        max_new_tokens: Of a generated response; 0 where none is generated.
        where: The loader's name in messages.

    Raises:
        InputError: A line for each problem.
    """
    lines = []
    positions, real = limits.positions, int(examples.lengths.sum(axis=1).max())
    if positions is not None and real > positions:
        lines.append(
            f"the longest row has {real} tokens, more than the model's {positions} positions. "
            f"Lower {where}.dataset.max_seq_len."
        )
    longest = examples.max_prompt_tokens + max_new_tokens
    if positions is not None and max_new_tokens and longest > positions:
        lines.append(
            f"algorithms.spin.generation.max_new_tokens={max_new_tokens} after the longest prompt "
            f"({examples.max_prompt_tokens} tokens) is more than the model's {positions} "
            f"positions. Lower it, or {where}.dataset.max_prompt_len."
        )
    if limits.vocabulary_size is not None and examples.max_token_id >= limits.vocabulary_size:
        lines.append(
            f"{where}: its rows hold token {examples.max_token_id}, and the model's embedding has "
            f"{limits.vocabulary_size} tokens. Give the model's own tokenizer."
        )
    if lines:
        raise InputError("\n".join(lines))


def check_first_batch_is_whole(examples: ExampleDataset, samples: int | str, batch: int) -> None:
    """Refuse fewer prompts than the first iteration's one batch takes.

    Args:
        examples: The SFT set.
        samples: ``algorithms.spin.samples_per_iteration``.
        batch: Pairs in a batch of all ranks.

    Raises:
        InputError: Names the numbers.
    """
    rows, dropped = len(examples), sum(examples.report.dropped.values())
    prompts = min(rows, samples) if isinstance(samples, int) else rows
    if prompts >= batch:
        return
    given = f"the {rows} rows"
    if prompts != rows:
        given = f"algorithms.spin.samples_per_iteration={samples}"
    beside = f" ({dropped} bad ones were left out)" if dropped and prompts == rows else ""
    raise InputError(
        f"global_train_batch_size={batch} pairs is more than {given}{beside}: an iteration would "
        "have no whole batch. Lower it, or give more rows."
    )
