"""Batches of held-out rows for the SFT likelihood, tokenized exactly like training rows.

Dimensions: B rows, T tokens of the longest, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, TypedDict, TypeGuard, cast

import torch
from composer.core import DataSpec
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.pairs import SequenceBatch
from spin_composer.report.history import NLL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS = (NLL, "LanguagePerplexity", "TokenAccuracy")
"""The evaluation metrics of SFT batches, by Composer's and llm-foundry's names."""
IGNORED = -100
"""The label of positions that Composer's metrics ignore."""


class HeldOutBatch(TypedDict):
    """Rows padded on the right to the longest."""

    input_ids: Tensor
    """int64 [B, T]"""
    labels: Tensor
    """int64 [B, T]: the ids of the responses at their own places (the model shifts them), and -100
    elsewhere."""
    attention_mask: Tensor
    """int64 [B, T]: 1 where there is a token."""
    spans: list[tuple[int, int]]
    """[B]: start and end of the response in each row; stays on the host."""


class HeldOutRows(Dataset):
    """The examples of an evaluation; not an ``ExampleDataset``, which could be trained on."""

    def __init__(self, examples: ExampleDataset) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]


def collate_held_out(rows: Sequence[Example], pad_token_id: int) -> HeldOutBatch:
    """Return the SFT batch of ``rows``."""
    spans = [(len(row.prompt), len(row.prompt) + len(row.response)) for row in rows]
    shape = (len(rows), max(end for _, end in spans))
    ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    for i, (row, (start, end)) in enumerate(zip(rows, spans, strict=True)):
        ids[i, :start] = torch.from_numpy(row.prompt)
        ids[i, start:end] = torch.from_numpy(row.response)
        labels[i, start:end] = ids[i, start:end]
        mask[i, :end] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "spans": spans}


def is_held_out_batch(batch: object) -> TypeGuard[HeldOutBatch]:
    """Return whether a batch is from :func:`collate_held_out`, not another evaluation loader."""
    return isinstance(batch, Mapping) and "spans" in batch


def without_padding(batch: HeldOutBatch) -> SequenceBatch:
    """Return the rows of a batch one after another, on its device.

    The first token of a row is not scored, just as when the model shifts the labels.
    """
    ids, spans = batch["input_ids"], batch["spans"]
    width = ids.shape[1]
    bounds = [0, *accumulate(end for _, end in spans)]
    tokens = [torch.arange(i * width, i * width + end) for i, (_, end) in enumerate(spans)]
    predicted = [
        torch.arange(bound + max(first, 1), bound + end)
        for bound, (first, end) in zip(bounds, spans, strict=False)
    ]
    packed = ids.flatten()[torch.cat(tokens).to(ids.device)]
    targets = torch.cat(predicted).to(ids.device)
    return {
        "input_ids": packed,
        "scored_rows": targets - 1,
        "targets": packed[targets],
        "seqlen_bounds": bounds,
    }


def held_out_collator(tokenizer: PreTrainedTokenizerBase) -> partial[HeldOutBatch]:
    """Return the collator; any id can pad, since the mask hides it and it has no label."""
    pad = cast("int | None", tokenizer.pad_token_id)
    return partial(collate_held_out, pad_token_id=0 if pad is None else pad)


def held_out_data_spec(loader: DataLoader) -> DataSpec:
    """Return a DataSpec of ``loader`` that counts rows and tokens of SFT batches."""
    return DataSpec(
        loader,
        get_num_samples_in_batch=lambda batch: len(batch["input_ids"]),
        get_num_tokens_in_batch=num_tokens,
    )


def num_tokens(batch: Mapping[str, Tensor]) -> dict[str, int]:
    """Return Composer's token counts of a batch: all tokens, and those with a label."""
    scored = batch["labels"][:, 1:] != IGNORED
    return {"total": int(batch["attention_mask"].sum()), "loss_generating": int(scored.sum())}
