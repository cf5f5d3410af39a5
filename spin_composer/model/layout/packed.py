"""Pairs packed into a single row without padding; with a shared prompt, it occurs once per pair.

Dimensions: B pairs, S = 2B sequences, M tokens of the row, N scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, arange

from spin_composer.data.pairs import PairBatch, SequenceBatch, pair_sizes
from spin_composer.model.layout.base import Layout, ModelInputs
from spin_composer.model.layout.segments import Segment, Segments
from spin_composer.settings.spin import LayoutName


class SharedLayout(Layout):
    """``[prompt | real | generated]`` of each pair, one after another.

    Both responses continue the prompt's positions, and the first token of each is predicted from
    the last prompt position.
    """

    name: ClassVar[LayoutName] = "shared"

    def arrange(self, batch: PairBatch) -> ModelInputs:
        """Return ``input_ids`` and ``position_ids`` [1, M], the table of segments, and rows [N]."""
        taken: list[Tensor] = []  # which of the batch's tokens are in the row
        positions: list[Tensor] = []
        rows: list[Tensor] = []
        segments: list[Segment] = []
        start = 0
        offsets = batch["seqlen_bounds"][::2]
        for offset, (prompt, real, generated) in zip(offsets, pair_sizes(batch), strict=False):
            second = offset + prompt + real  # the prompt again, before the generated response
            taken.append(arange(offset, second))
            taken.append(arange(second + prompt, second + prompt + generated))
            positions += [arange(prompt + real), arange(prompt, prompt + generated)]
            last, after = start + prompt - 1, start + prompt + real
            rows += [arange(last, last + real), arange(last, last + 1)]
            rows.append(arange(after, after + generated - 1))
            segments.append(Segment(start, prompt, real, generated))
            start = segments[-1].end
        device = batch["input_ids"].device
        ids = batch["input_ids"][torch.cat(taken).to(device)]
        return ModelInputs(_kwargs(ids, positions, segments), torch.cat(rows).to(device))


class PackedLayout(Layout):
    """Every sequence, its prompt included, one after another."""

    name: ClassVar[LayoutName] = "packed"

    def arrange(self, batch: SequenceBatch) -> ModelInputs:
        """Return ``input_ids`` and ``position_ids`` [1, M], the table of segments, and rows [N].

        Args:
            batch: Pairs, or any sequences.
        """
        bounds = list(pairwise(batch["seqlen_bounds"]))
        segments = [Segment(start, 0, end - start, 0) for start, end in bounds]
        positions = [arange(end - start) for start, end in bounds]
        return ModelInputs(_kwargs(batch["input_ids"], positions, segments), batch["scored_rows"])


def _kwargs(
    ids: Tensor, positions: Sequence[Tensor], segments: Sequence[Segment]
) -> dict[str, Tensor]:
    return {
        "input_ids": ids[None],
        "position_ids": torch.cat(list(positions))[None].to(ids.device),
        "attention_mask": Segments(segments).table(ids.device),
    }


PACKED = PackedLayout()
