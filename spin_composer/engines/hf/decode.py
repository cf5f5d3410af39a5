"""The decode loop of engine ``hf``: finished rows leave the batch, waiting prompts join it.

A step feeds one token per row, draws the next and marks finished rows on the device; the host
reads these flags every few steps only.

A row's tokens depend only on its prompt and its uniforms: the other rows of the batch change its
logits by rounding at most.

Dimensions: R rows in the batch, Q tokens fed to each, L columns of the cache that are filled,
P tokens of a prompt, V vocabulary, G longest response.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spin_composer import interrupt
from spin_composer.data.pairs import Ids
from spin_composer.engines.base import OnProgress, ignore_progress
from spin_composer.engines.hf.cache import cache_argument
from spin_composer.engines.hf.rows import Rows
from spin_composer.engines.hf.sampling import Sampler, StopStrings
from spin_composer.model.unwrap import inner_model
from spin_composer.settings.generation import GenerationSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SYNC_EVERY = 8
"""Steps after which the host reads which rows are finished."""
COMPACTION_RATIO = 8
"""Finished rows are removed once there is one per so many that stay: removal copies the cache."""
PREFILL_TOKENS = 8192
"""Most prompt tokens, padding included, of one forward pass; a longer prompt runs alone."""
WORTH_A_PASS = 1024
"""Prompt tokens from which on a forward pass takes its time per token, whatever the device."""
PADDING_RATIO = 16
"""Such a pass takes no prompt that would make padding more than one token per so many of prompts;
the next pass takes it, with others of its length."""


class Decoder:
    """Answers prompts with a model that has a standard KV cache.

    Args:
        model: The policy, called as in training.
        stop_token_id: The one token that ends a response.
        settings: Sampling settings.
        device: Where the model is.
        dtype: That attention computes in.
        strings: Finds stop strings, or None.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
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
        self._all_finite = torch.ones((), dtype=torch.bool, device=device)
        inner = inner_model(model)
        self._cache_argument = cache_argument(inner)
        takes = inspect.signature(inner.forward).parameters
        self._takes_columns = "cache_position" in takes  # transformers 5 asks the cache
        # Only the last position's logits of a prompt's [P, V] are needed.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def run(
        self,
        prompts: Sequence[Ids],
        uniforms: Tensor,
        on_progress: OnProgress = ignore_progress,
    ) -> list[Ids]:
        """Answer the prompts; they join the batch in order.

        Args:
            prompts: Token ids [P] of each.
            uniforms: [N, G] fp64 in [0, 1): row i has the random numbers of prompt i.
            on_progress: Called whenever the host reads which rows are finished.

        Returns:
            The response to each prompt [<= G]; stop tokens may follow its end.

        Raises:
            RuntimeError: If the policy's logits are not finite.
        """
        uniforms = uniforms.to(self.device)
        answers: dict[int, Ids] = {}
        waiting = deque(range(len(prompts)))
        rows: Rows | None = None
        while True:
            interrupt.check()
            done = [] if rows is None else self._poll_finished(rows)
            keep = [row for row, is_done in enumerate(done) if not is_done]
            if rows is not None:
                made = sum(map(len, answers.values())) + sum(rows.counts)
                on_progress(len(answers) + sum(done), made)
            if rows is None or self._should_compact(rows, len(keep)):
                answers |= {} if rows is None else rows.responses(done)
                rows = self._rebatch(rows, keep, prompts, uniforms, waiting)
            if rows is None:
                return [answers[number] for number in range(len(prompts))]
            left = self.settings.max_new_tokens - min(rows.counts)
            for _ in range(min(SYNC_EVERY, left)):
                self._step(rows)

    def _poll_finished(self, rows: Rows) -> list[bool]:
        """Return which rows are finished: the only place where the host waits for the device."""
        *done, finite = torch.cat([rows.finished, self._all_finite[None]]).tolist()
        if not finite:
            raise RuntimeError("the policy's logits are not finite: its weights are broken.")
        return done

    def _should_compact(self, rows: Rows, num_kept: int) -> bool:
        """Return whether the finished rows should be removed now."""
        num_done = len(rows.prompt_indices) - num_kept
        # A cache that must grow is copied anyway, and should not grow for finished rows.
        grows = rows.cache.length + SYNC_EVERY + 2 > rows.cache.capacity
        return num_kept == 0 or num_done * COMPACTION_RATIO >= num_kept or (grows and num_done > 0)

    def _rebatch(
        self,
        rows: Rows | None,
        keep: list[int],
        prompts: Sequence[Ids],
        uniforms: Tensor,
        waiting: deque[int],
    ) -> Rows | None:
        """Return a batch of the remaining rows and of waiting prompts; None if it is empty."""
        rows = rows if keep else None
        changed = False
        while waiting and len(keep) < self.settings.batch_size:
            prompt_indices = self._next_prefill(len(keep), prompts, waiting)
            new = self._prefill(prompt_indices, prompts, uniforms)
            rows = new if rows is None else rows.merged(keep, new, uniforms)
            keep, changed = list(range(len(rows.prompt_indices))), True
        if rows is not None and not changed:
            rows = rows.merged(keep, None, uniforms)
        return rows

    def _next_prefill(
        self, batch_rows: int, prompts: Sequence[Ids], waiting: deque[int]
    ) -> list[int]:
        prompt_indices: list[int] = []
        width = tokens = 0
        while waiting and batch_rows + len(prompt_indices) < self.settings.batch_size:
            more = len(prompts[waiting[0]])
            width = max(width, more)
            padded = width * (len(prompt_indices) + 1)
            padding = padded - tokens - more
            uneven = tokens >= WORTH_A_PASS and padding * PADDING_RATIO > tokens + more
            if prompt_indices and (padded > PREFILL_TOKENS or uneven):
                break
            tokens += more
            prompt_indices.append(waiting.popleft())
        return prompt_indices

    def _prefill(self, prompt_indices: list[int], prompts: Sequence[Ids], uniforms: Tensor) -> Rows:
        """Return rows for prompts, with the first response token drawn."""
        rows = Rows.from_prompts(prompt_indices, prompts, uniforms, self.dtype)
        width = max(rows.widths)
        columns = torch.arange(width, device=self.device)
        positions = (columns - rows.starts[:, None]).clamp(min=0)
        mask, ids = rows.prompt_mask(width), rows.ids[:, :width]
        self._draw(rows, self._forward(rows, ids, mask, positions, columns))
        return rows

    def _step(self, rows: Rows) -> None:
        """Feed the token drawn last, and draw the next."""
        column = rows.open_column()
        # Finished rows continue until the next poll, at a position that they have had before.
        positions = (column - rows.starts).masked_fill(rows.finished, 0)[:, None]
        columns = torch.arange(column, column + 1, device=self.device)
        ids = rows.ids[:, column : column + 1]
        self._draw(rows, self._forward(rows, ids, rows.mask, positions, columns))

    def _forward(
        self, rows: Rows, ids: Tensor, mask: Tensor, positions: Tensor, columns: Tensor
    ) -> Tensor:
        """Run the model on [R, Q] tokens; return the last one's logits [R, V] in fp32."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            return_dict=True,
            **{self._cache_argument: rows.cache},
            **({"cache_position": columns} if self._takes_columns else {}),
            **self._last_only,
        )
        rows.cache.length += ids.shape[1]
        # Always a copy: the sampler modifies it.
        return output.logits[:, -1].to(torch.float32, copy=True)

    def _draw(self, rows: Rows, logits: Tensor) -> None:
        """Draw the token of column L from the logits [R, V] of the one before it."""
        column = rows.cache.length
        counts = column - rows.response_starts
        # Finished rows may be past their last uniform.
        index = counts.clamp(max=rows.uniforms.shape[1] - 1)[:, None]
        uniforms = rows.uniforms.gather(1, index)[:, 0]
        tokens, finite = self.sampler.draw(logits, uniforms, rows.ids[:, :column], counts)
        tokens = tokens.masked_fill(rows.finished, self.stop_token_id)
        rows.ids[:, column] = tokens
        rows.finished |= (tokens == self.stop_token_id) | (
            counts + 1 >= self.settings.max_new_tokens
        )
        if self.strings is not None:
            rows.finished |= self.strings.stopped_rows(
                rows.ids[:, : column + 1], rows.response_starts
            )
        self._all_finite &= finite
