"""The decode loop of engine ``hf``: finished rows leave the batch, waiting prompts join it.

A step feeds one token per row, draws the next and notes on the device which rows are done; the
host looks at that every few steps only. Rows of the batch end flush right in the cache's columns,
so that all of them write the same column, and differ in where they start.

What a row gets depends on the prompts and their uniforms alone: who sits beside it is decided by
the tokens themselves, and moves its logits by rounding at most.

Dimensions: R rows in the batch, C columns of the cache, L of them filled, P columns of a prompt
batch, V vocabulary, G longest response.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spin_composer.self_play.cache import RowCache, rounded
from spin_composer.self_play.sampling import Sampler, StopStrings
from spin_composer.settings import GenerationSettings

Ids = NDArray[np.int32]

LOOK_EVERY = 8
"""Steps between two looks of the host at which rows are done."""
CHANGE_AT = 8
"""The batch is changed when one row in so many is done: a change copies the whole cache."""
PREFILL_TOKENS = 8192
"""Prompt tokens, padding included, that one forward pass takes; a longer prompt goes alone."""


@dataclass
class _Rows:
    """Rows of a batch; token number L of each is drawn, and not yet in the cache."""

    numbers: list[int]
    """Which prompts they answer."""
    first: list[int]
    """[R] the column of each row's first token; ``starts`` on the host."""
    widths: list[int]
    """[R] tokens of the prompt of each."""
    cache: RowCache
    ids: Tensor
    """[R, C] int64; left of a row's start its first token is repeated."""
    starts: Tensor
    """[R] int64."""
    begins: Tensor
    """[R] int64, the column where the response begins."""
    finished: Tensor
    """[R] bool."""
    uniforms: Tensor
    """[R, G] fp64."""
    mask: Tensor
    """[R, 1, 1, C], added to attention's scores: 0 in a row's filled columns."""

    @property
    def counts(self) -> list[int]:
        """[R] tokens of each response so far, those behind its end included."""
        pairs = zip(self.first, self.widths, strict=True)
        return [self.cache.length + 1 - start - width for start, width in pairs]


class Decoder:
    """Answers prompts with a model that has a standard KV cache.

    Args:
        model: The policy; called as training calls it.
        stop_token_id: The one token that ends a response.
        settings: Sampling settings.
        device: Where the model is.
        dtype: That attention computes in.
        strings: Ends rows at stop strings, or None.
    """

    def __init__(
        self,
        model: Any,
        stop_token_id: int,
        settings: GenerationSettings,
        device: torch.device,
        dtype: torch.dtype,
        strings: StopStrings | None,
    ):
        self.model = model
        self.stop_token_id = stop_token_id
        self.settings = settings
        self.device = device
        self.dtype = dtype
        self.strings = strings
        self.sampler = Sampler(settings, stop_token_id)
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        takes = inspect.signature(_forward_of(model)).parameters
        # Of a prompt's logits [P, V] only the last are needed.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def run(self, prompts: Sequence[Ids], uniforms: Tensor) -> list[Ids]:
        """Answer the prompts; they join the batch in order.

        Args:
            prompts: Token ids [P] of each.
            uniforms: [N, G] fp64 in [0, 1): row i is the fate of prompt i.

        Returns:
            The response of each [<= G]; behind its end, stop tokens may follow.

        Raises:
            RuntimeError: If the policy's logits are not finite.
        """
        uniforms = uniforms.to(self.device)
        answers: dict[int, Ids] = {}
        waiting = deque(range(len(prompts)))
        rows: _Rows | None = None
        while True:
            done = [] if rows is None else self._look(rows)
            keep = [row for row, is_done in enumerate(done) if not is_done]
            num_done = len(done) - len(keep)
            most = self.settings.batch_size if waiting else len(done)
            if rows is None or not keep or num_done * CHANGE_AT >= most:
                if rows is not None:
                    _collect(rows, done, answers)
                rows = self._changed(rows, keep, prompts, uniforms, waiting)
            if rows is None:
                return [answers[number] for number in range(len(prompts))]
            left = self.settings.max_new_tokens - min(rows.counts)
            for _ in range(min(LOOK_EVERY, left)):
                self._step(rows)

    def _look(self, rows: _Rows) -> list[bool]:
        """Return which rows are done: the one place where the host waits for the device."""
        *done, sound = torch.cat([rows.finished, self._sound[None]]).tolist()
        if not sound:
            raise RuntimeError("the policy's logits are not finite: its weights are broken.")
        return done

    def _changed(
        self,
        rows: _Rows | None,
        keep: list[int],
        prompts: Sequence[Ids],
        uniforms: Tensor,
        waiting: deque[int],
    ) -> _Rows | None:
        """Return the batch without the rows that are not kept, and with as many waiting prompts
        as there is room for; None if none is left."""
        rows = rows if keep else None
        changed = False
        while waiting and len(keep) < self.settings.batch_size:
            numbers = self._next(len(keep), prompts, waiting)
            new = self._prefill(numbers, prompts, uniforms)
            rows = new if rows is None else self._merged(rows, keep, new, uniforms)
            keep, changed = list(range(len(rows.numbers))), True
        if rows is not None and not changed:
            rows = self._merged(rows, keep, None, uniforms)
        return rows

    def _next(self, held: int, prompts: Sequence[Ids], waiting: deque[int]) -> list[int]:
        numbers: list[int] = []
        width = 0
        while waiting and held + len(numbers) < self.settings.batch_size:
            width = max(width, len(prompts[waiting[0]]))
            if numbers and width * (len(numbers) + 1) > PREFILL_TOKENS:
                break
            numbers.append(waiting.popleft())
        return numbers

    def _prefill(self, numbers: list[int], prompts: Sequence[Ids], uniforms: Tensor) -> _Rows:
        """Return rows of prompts whose first response token is drawn."""
        widths = [len(prompts[number]) for number in numbers]
        width = max(widths)
        held = torch.empty((len(numbers), rounded(width + 1)), dtype=torch.int64)
        for row, number in enumerate(numbers):
            # The repetition penalty looks at padding too, so only a token of the prompt pads.
            held[row] = int(prompts[number][0])
            held[row, width - widths[row] : width] = torch.from_numpy(prompts[number]).long()
        first = [width - w for w in widths]
        ids, cache = held.to(self.device), RowCache(self.dtype)
        rows = self._rows(numbers, first, widths, ids, cache, uniforms)
        columns = torch.arange(width, device=self.device)
        # A padding position sees itself: without anything to see it would hold NaN.
        seen = (columns >= rows.starts[:, None, None]) & (columns <= columns[:, None])
        seen |= torch.eye(width, dtype=torch.bool, device=self.device)
        positions = (columns - rows.starts[:, None]).clamp(min=0)
        mask = self._hiding(~seen)[:, None]
        self._draw(rows, self._forward(rows, ids[:, :width], mask, positions, columns))
        return rows

    def _merged(self, rows: _Rows, keep: list[int], new: _Rows | None, uniforms: Tensor) -> _Rows:
        """Return the rows that are kept and those of ``new``, in one batch."""
        old = rows.cache.length
        kept = torch.tensor(keep, device=self.device)
        tail = max(old - rows.first[row] for row in keep)
        rows.cache.merge(kept, tail, None if new is None else new.cache)
        length, capacity = rows.cache.length, rows.cache.capacity
        numbers = [rows.numbers[row] for row in keep]
        first = [rows.first[row] + length - old for row in keep]
        widths = [rows.widths[row] for row in keep]
        ids = [_moved(rows.ids[kept], old, tail, length, capacity)]
        finished = [rows.finished[kept]]
        if new is not None:
            width = new.cache.length
            numbers += new.numbers
            first += [column + length - width for column in new.first]
            widths += new.widths
            ids.append(_moved(new.ids, width, width, length, capacity))
            finished.append(new.finished)
        made = self._rows(numbers, first, widths, torch.cat(ids), rows.cache, uniforms)
        made.finished = torch.cat(finished)
        return made

    def _rows(
        self,
        numbers: list[int],
        first: list[int],
        widths: list[int],
        ids: Tensor,
        cache: RowCache,
        uniforms: Tensor,
    ) -> _Rows:
        starts, lengths, index = torch.tensor([first, widths, numbers], device=self.device)
        return _Rows(
            numbers,
            first,
            widths,
            cache,
            ids,
            starts,
            begins=starts + lengths,
            finished=torch.zeros_like(starts, dtype=torch.bool),
            uniforms=uniforms[index],
            mask=self._mask(starts, cache.length, ids.shape[1]),
        )

    def _step(self, rows: _Rows) -> None:
        """Feed the token drawn last, and draw the next."""
        column = rows.cache.length
        if rows.cache.reserve(column + 1):
            room = rows.cache.capacity - rows.ids.shape[1]
            rows.ids = torch.nn.functional.pad(rows.ids, (0, room))
            rows.mask = self._mask(rows.starts, column, rows.cache.capacity)
        rows.mask[..., column] = 0
        # Rows that are done go on until the next look, at a position that they have been at.
        positions = (column - rows.starts).masked_fill(rows.finished, 0)[:, None]
        columns = torch.arange(column, column + 1, device=self.device)
        ids = rows.ids[:, column : column + 1]
        self._draw(rows, self._forward(rows, ids, rows.mask, positions, columns))

    def _forward(
        self, rows: _Rows, ids: Tensor, mask: Tensor, positions: Tensor, columns: Tensor
    ) -> Tensor:
        """Run the model on [R, Q] tokens; return the last one's logits [R, V] in fp32."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=rows.cache,
            use_cache=True,
            cache_position=columns,
            return_dict=True,
            **self._last_only,
        )
        rows.cache.length += ids.shape[1]
        # A copy always: the sampler changes it.
        return output.logits[:, -1].to(torch.float32, copy=True)

    def _draw(self, rows: _Rows, logits: Tensor) -> None:
        """Draw the token of column L from the logits [R, V] of the one before it."""
        column = rows.cache.length
        counts = column - rows.begins
        # Rows that are done may be behind their last uniform.
        index = counts.clamp(max=rows.uniforms.shape[1] - 1)[:, None]
        uniforms = rows.uniforms.gather(1, index)[:, 0]
        tokens, sound = self.sampler.draw(logits, uniforms, rows.ids[:, :column], counts)
        tokens = tokens.masked_fill(rows.finished, self.stop_token_id)
        rows.ids[:, column] = tokens
        rows.finished |= (tokens == self.stop_token_id) | (
            counts + 1 >= self.settings.max_new_tokens
        )
        if self.strings is not None:
            rows.finished |= self.strings.of_rows(rows.ids[:, : column + 1], rows.begins)
        self._sound &= sound

    def _mask(self, starts: Tensor, length: int, capacity: int) -> Tensor:
        """Return [R, 1, 1, C]: of the columns, only the ``length`` filled ones are seen."""
        columns = torch.arange(capacity, device=self.device)
        seen = (columns >= starts[:, None]) & (columns < length)
        return self._hiding(~seen)[:, None, None]

    def _hiding(self, hidden: Tensor) -> Tensor:
        """Return what is added to attention's scores."""
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, torch.finfo(self.dtype).min)


def _collect(rows: _Rows, done: list[bool], answers: dict[int, Ids]) -> None:
    """Add the responses of the rows that are done to ``answers``."""
    ids = rows.ids[:, : rows.cache.length + 1].cpu().numpy().astype(np.int32)
    for row, number in enumerate(rows.numbers):
        if done[row]:
            answers[number] = ids[row, rows.first[row] + rows.widths[row] :].copy()


def _moved(ids: Tensor, end: int, tail: int, length: int, capacity: int) -> Tensor:
    """Return ids [R, C] whose last ``tail`` tokens and the one at ``end`` stand at ``length``."""
    padding = ids[:, end - tail : end - tail + 1]
    moved = padding.repeat(1, capacity)
    moved[:, length - tail : length + 1] = ids[:, end - tail : end + 1]
    return moved


def _forward_of(model: Any) -> Any:
    """Return the forward of a Hugging Face model within PEFT's and FSDP1's wrappers."""
    model = getattr(model, "_fsdp_wrapped_module", model)
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    return getattr(model, "_fsdp_wrapped_module", model).forward
