"""Batches of held-out rows for the SFT likelihood, tokenized exactly like training rows.

Dimensions: B rows, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from composer.core import DataSpec
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.report.history import NLL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS = (NLL, "LanguagePerplexity", "TokenAccuracy")
"""The evaluation metrics of SFT batches, by Composer's and llm-foundry's names."""
IGNORED = -100
"""The label of positions that Composer's metrics ignore."""


class HeldOutRows(Dataset):
    """The examples of an evaluation; not an ``ExampleDataset``, which could be trained on."""

    def __init__(self, examples: ExampleDataset) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]


def collate_held_out(rows: Sequence[Example], pad_token_id: int) -> dict[str, Tensor]:
    """Return the SFT batch of ``rows``, padded on the right to the longest.

    Returns:
        ``input_ids``, ``labels`` and ``attention_mask``, each [B, T] int64. Labels are the ids of
        the responses at their own places (the model shifts them), and -100 elsewhere.
    """
    lengths = [(len(row.prompt), len(row.prompt) + len(row.response)) for row in rows]
    shape = (len(rows), max(end for _, end in lengths))
    ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.int64)
    for i, (row, (start, end)) in enumerate(zip(rows, lengths, strict=True)):
        ids[i, :start] = torch.from_numpy(row.prompt)
        ids[i, start:end] = torch.from_numpy(row.response)
        labels[i, start:end] = ids[i, start:end]
        mask[i, :end] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def held_out_collator(tokenizer: PreTrainedTokenizerBase) -> partial[dict[str, Tensor]]:
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
