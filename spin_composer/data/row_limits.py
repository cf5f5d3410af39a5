"""Checks that rows fit a model's positions and embedding, and fill at least one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spin_composer.errors import InputError
from spin_composer.pretrained.limits import ModelLimits

if TYPE_CHECKING:
    from spin_composer.data.examples import ExampleDataset


def check_rows(
    examples: ExampleDataset, limits: ModelLimits, max_new_tokens: int, where: str = "train_loader"
) -> None:
    """Reject rows, or generated responses, that exceed the model's positions or embedding.

    Args:
        examples: The SFT set.
        limits: The model's limits.
        max_new_tokens: Longest generated response; 0 if none is generated.
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
    most, rescaled_past = max(real, longest), limits.rescaled_past
    if rescaled_past is not None and most > rescaled_past:
        lines.append(
            f"sequences of up to {most} tokens pass the {rescaled_past} beyond which this model's "
            "rotary embedding changes for all rows of a batch, the short ones too: policy and "
            "opponent, in other batches, would differ by that alone. Lower "
            f"{where}.dataset.max_seq_len and algorithms.spin.generation.max_new_tokens."
        )
    if limits.vocabulary_size is not None and examples.max_token_id >= limits.vocabulary_size:
        lines.append(
            f"{where}: its rows hold token {examples.max_token_id}, and the model's embedding has "
            f"{limits.vocabulary_size} tokens. Give the model's own tokenizer."
        )
    if lines:
        raise InputError("\n".join(lines))


def check_first_batch_is_whole(
    examples: ExampleDataset, samples: int | str, batch: int, responses: int = 1
) -> None:
    """Reject a data set that makes fewer pairs than one batch of the first iteration.

    Args:
        examples: The SFT set.
        samples: ``algorithms.spin.samples_per_iteration``.
        batch: Pairs in a batch of all ranks.
        responses: ``algorithms.spin.responses_per_prompt``.

    Raises:
        InputError: Names the numbers.
    """
    rows, dropped = len(examples), sum(examples.report.dropped.values())
    prompts = min(rows, samples) if isinstance(samples, int) else rows
    if prompts * responses >= batch:
        return
    given = f"the {rows} rows"
    if prompts != rows:
        given = f"algorithms.spin.samples_per_iteration={samples}"
    beside = f" ({dropped} bad ones were left out)" if dropped and prompts == rows else ""
    if responses > 1:
        beside += f", {responses} responses to each"
    raise InputError(
        f"global_train_batch_size={batch} pairs is more than {given}{beside}: an iteration would "
        "have no whole batch. Lower it, or give more rows."
    )
