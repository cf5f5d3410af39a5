"""Sequences as rows, padded on the right: exact for every causal model.

Dimensions: S = 2B sequences, T the longest of them, N scored positions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch

from spin_composer.data.pairs import PairBatch
from spin_composer.model.layout.base import Layout, ModelInputs
from spin_composer.settings.spin import LayoutName


class PaddedLayout(Layout):
    """Each sequence, its prompt included, is a row of [S, T]."""

    name: ClassVar[LayoutName] = "padded"

    def arrange(self, batch: PairBatch) -> ModelInputs:
        """Return ``input_ids`` and ``attention_mask``, each int64 [S, T], and rows [N] in S * T."""
        ids, cu = batch["input_ids"], batch["cu_seqlens"].long()
        lengths = cu.diff()
        bounds = batch["seqlen_bounds"]  # on the host: no synchronization
        num_sequences, width = len(bounds) - 1, max(b - a for a, b in pairwise(bounds))
        sequence = torch.repeat_interleave(lengths, output_size=ids.shape[0])  # [total]
        places = torch.arange(ids.shape[0], device=ids.device) - cu[sequence] + sequence * width
        # Any id will do as padding: it is masked, and causal attention never looks right.
        padded = torch.zeros(num_sequences * width, dtype=torch.long, device=ids.device)
        padded[places] = ids
        mask = torch.arange(width, device=ids.device) < lengths[:, None]
        kwargs = {"input_ids": padded.view(num_sequences, width), "attention_mask": mask.long()}
        return ModelInputs(kwargs, places[batch["scored_rows"]])


PADDED = PaddedLayout()
