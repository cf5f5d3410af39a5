"""The rows of a running batch: their tokens and start columns, and how rows are exchanged.

Rows are right-aligned in the cache, so that a step writes the same column of all of them; they
differ in where they start.

Dimensions: R rows, C columns of the cache, L of them filled, P columns of a prompt batch, G longest
response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from spin_composer.data.pairs import Ids
from spin_composer.engines.hf.cache import RowCache, round_up


@dataclass
class Rows:
    """Rows whose token at column L is drawn but not yet in the cache."""

    prompt_indices: list[int]
    """[R] the prompt that each row answers."""
    first: list[int]
    """[R] the column of each row's first token; ``starts`` on the host."""
    widths: list[int]
    """[R] tokens of each row's prompt."""
    cache: RowCache
    ids: Tensor
    """[R, C] int64; left of its start a row repeats its first token, which the repetition penalty
    has seen anyway: it looks at padding too."""
    starts: Tensor
    """[R] int64."""
    response_starts: Tensor
    """[R] int64, the columns where the responses begin."""
    finished: Tensor
    """[R] bool."""
    uniforms: Tensor
    """[R, G] fp64."""
    mask: Tensor
    """[R, 1, 1, C], added to attention's scores: 0 in a row's filled columns."""

    @classmethod
    def from_prompts(
        cls,
        prompt_indices: list[int],
        prompts: Sequence[Ids],
        uniforms: Tensor,
        dtype: torch.dtype,
    ) -> Rows:
        """Return rows of prompts with an empty cache.

        Args:
            prompt_indices: Which of the prompts.
            prompts: All of them, [P] each.
            uniforms: [N, G], of all prompts, on the model's device.
            dtype: That attention computes in.
        """
        widths = [len(prompts[number]) for number in prompt_indices]
        width = max(widths)
        ids = torch.empty((len(prompt_indices), round_up(width + 1)), dtype=torch.int64)
        for row, number in enumerate(prompt_indices):
            ids[row] = int(prompts[number][0])
            ids[row, width - widths[row] : width] = torch.from_numpy(prompts[number]).long()
        first = [width - w for w in widths]
        ids = ids.to(uniforms.device)
        return cls._build(prompt_indices, first, widths, RowCache(dtype), ids, uniforms)

    @classmethod
    def _build(
        cls,
        prompt_indices: list[int],
        first: list[int],
        widths: list[int],
        cache: RowCache,
        ids: Tensor,
        uniforms: Tensor,
    ) -> Rows:
        starts, lengths, index = torch.tensor([first, widths, prompt_indices], device=ids.device)
        return cls(
            prompt_indices,
            first,
            widths,
            cache,
            ids,
            starts,
            response_starts=starts + lengths,
            finished=torch.zeros_like(starts, dtype=torch.bool),
            uniforms=uniforms[index],
            mask=_step_mask(starts, cache, ids.shape[1]),
        )

    @property
    def counts(self) -> list[int]:
        """[R] tokens of each response so far, including those after its end."""
        pairs = zip(self.first, self.widths, strict=True)
        return [self.cache.length + 1 - start - width for start, width in pairs]

    def prompt_mask(self, width: int) -> Tensor:
        """Return [R, 1, P, P] for the first pass, added to attention's scores."""
        columns = torch.arange(width, device=self.ids.device)
        seen = (columns >= self.starts[:, None, None]) & (columns <= columns[:, None])
        # A padding position sees itself: without anything to see it would hold NaN.
        seen |= torch.eye(width, dtype=torch.bool, device=self.ids.device)
        return _additive_mask(~seen, self.cache.dtype)[:, None]

    def open_column(self) -> int:
        """Unmask column L and make room for the next token; return L."""
        column = self.cache.length
        if self.cache.reserve(column + 2):
            self.ids = pad(self.ids, (0, self.cache.capacity - self.ids.shape[1]))
            self.mask = _step_mask(self.starts, self.cache, self.cache.capacity)
        self.mask[..., column] = 0
        return column

    def merged(self, keep: list[int], new: Rows | None, uniforms: Tensor) -> Rows:
        """Return the kept rows and those of ``new`` as one batch; neither may be used afterward.

        Args:
            keep: Which rows stay; not finished, at least one.
            new: Rows that join, or None.
            uniforms: [N, G], of all prompts.
        """
        old, cache = self.cache.length, self.cache
        kept = torch.tensor(keep, device=self.ids.device)
        tail = max(old - self.first[row] for row in keep)
        cache.merge(kept, tail, None if new is None else new.cache)
        prompt_indices = [self.prompt_indices[row] for row in keep]
        first = [self.first[row] + cache.length - old for row in keep]
        widths = [self.widths[row] for row in keep]
        ids = [_align_columns(self.ids[kept], old, tail, cache)]
        finished = [self.finished[kept]]
        if new is not None:
            width = new.cache.length
            prompt_indices += new.prompt_indices
            first += [column + cache.length - width for column in new.first]
            widths += new.widths
            ids.append(_align_columns(new.ids, width, width, cache))
            finished.append(new.finished)
        made = self._build(prompt_indices, first, widths, cache, torch.cat(ids), uniforms)
        made.finished = torch.cat(finished)
        return made

    def responses(self, which: Sequence[bool]) -> dict[int, Ids]:
        """Return the responses [<= G] of some rows by prompt; stop tokens may follow their end."""
        longest = self.uniforms.shape[1]
        ids = self.ids[:, : self.cache.length + 1].cpu().numpy().astype(np.int32)
        response_starts = zip(self.first, self.widths, strict=True)
        return {
            number: ids[row, start + width :][:longest].copy()
            for row, (number, (start, width)) in enumerate(
                zip(self.prompt_indices, response_starts, strict=True)
            )
            if which[row]
        }


def _align_columns(ids: Tensor, end: int, tail: int, cache: RowCache) -> Tensor:
    """Return ids [R, C] whose last ``tail`` tokens, and the one at ``end``, now end at L."""
    padding = ids[:, end - tail : end - tail + 1]
    moved = padding.repeat(1, cache.capacity)
    moved[:, cache.length - tail : cache.length + 1] = ids[:, end - tail : end + 1]
    return moved


def _step_mask(starts: Tensor, cache: RowCache, capacity: int) -> Tensor:
    columns = torch.arange(capacity, device=starts.device)
    seen = (columns >= starts[:, None]) & (columns < cache.length)
    return _additive_mask(~seen, cache.dtype)[:, None, None]


def _additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)
