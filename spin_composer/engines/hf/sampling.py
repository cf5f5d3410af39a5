"""Sampling of the next token, and stop strings; nothing here synchronizes with the device.

Dimensions: R rows, C columns of their ids, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StopStringCriteria
from transformers.generation import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from spin_composer.settings.generation import GenerationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_NO_TOKEN = 2**31 - 1
"""An id outside every vocabulary, which is part of no stop string."""


class StopStrings(StoppingCriteria):
    """Stops a row whose response holds a stop string.

    transformers' own criterion also looks at the prompt: a string that begins there would end a
    response that does not contain it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, strings: list[str], prompt_width: int = 0
    ):
        self.criteria: Any = StopStringCriteria(tokenizer, strings)
        self.prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        """Return whether to stop each row, [R]."""
        return self.criteria(input_ids[:, self.prompt_width :], scores)

    def contains(self, response: NDArray[np.int32]) -> bool:
        """Return whether a response [G] ends with a token that completes a stop string."""
        ids = torch.from_numpy(response)[None].long()
        return len(response) > 0 and bool(self.criteria(ids, None))

    def stopped_rows(self, ids: Tensor, response_starts: Tensor) -> Tensor:
        """Return whether to stop each row, [R], where responses start at different columns.

        Args:
            ids: [R, C] int64; every row's last token is in the last column.
            response_starts: [R] int64, the columns where responses begin.
        """
        first = max(0, ids.shape[1] - self.criteria.maximum_token_len)
        columns = torch.arange(first, ids.shape[1], device=ids.device)
        return self.criteria(
            ids[:, first:].masked_fill(columns < response_starts[:, None], _NO_TOKEN), None
        )


class Sampler:
    """Draws tokens as ``generate`` does with the same settings, from given uniforms.

    Args:
        settings: Sampling settings.
        stop_token_id: Forbidden before ``min_new_tokens``.
    """

    def __init__(self, settings: GenerationSettings, stop_token_id: int):
        self.stop_token_id = stop_token_id
        self.min_new_tokens = settings.min_new_tokens
        # In generate's order; those that would do nothing are left out.
        self.penalties = LogitsProcessorList()
        if settings.repetition_penalty != 1:
            penalty = float(settings.repetition_penalty)
            self.penalties.append(RepetitionPenaltyLogitsProcessor(penalty))
        self.warpers = LogitsProcessorList()
        if settings.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            self.warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            self.warpers.append(TopPLogitsWarper(float(settings.top_p)))

    def draw(
        self, logits: Tensor, uniforms: Tensor, ids: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw one token per row.

        Args:
            logits: [R, V] fp32; may be changed.
            uniforms: [R] fp64 in [0, 1), one number for each draw.
            ids: [R, C] int64, the tokens so far; padding repeats one of the row's own.
            counts: [R] int64, tokens of the response so far.

        Returns:
            Tokens [R] int64, and whether the logits were finite, a bool.
        """
        scores: Any = self.penalties(ids, logits)  # pyright: ignore[reportArgumentType]
        if self.min_new_tokens:
            early = counts < self.min_new_tokens
            stop = scores[:, self.stop_token_id]
            scores[:, self.stop_token_id] = stop.masked_fill(early, -torch.inf)
        scores = self.warpers(ids, scores)  # pyright: ignore[reportArgumentType]
        return sample_inverse_cdf(scores, uniforms)


def sample_inverse_cdf(scores: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw from softmax(scores): the first token at which the probabilities add up to 1 - u.

    One random number per row, independent of the other rows, instead of torch.multinomial's V
    exponentials. Summed in fp64: in fp32 a rare token's probability would be lost in the sum.

    Args:
        scores: [R, V] fp32.
        uniforms: [R] fp64 in [0, 1).

    Returns:
        Tokens [R] int64, and whether the scores of all rows were a distribution, a bool.
    """
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # 1 - u is in (0, 1]: a token of probability 0 is never the first to reach it.
    tokens = torch.searchsorted(cumulative, total * (1 - uniforms[:, None]))
    return tokens[:, 0].clamp(max=scores.shape[1] - 1), total.isfinite().all()


def draw_uniforms(count: int, tokens: int, seed: int) -> Tensor:
    """Return [count, tokens] fp64 uniforms of a seed; on the CPU, so equal for every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, tokens, dtype=torch.float64, generator=generator)


def permute(values: Sequence[T], order: Sequence[int]) -> list[T]:
    """Return the list in which ``values[i]`` stands at place ``order[i]``."""
    placed = dict(zip(order, values, strict=True))
    return [placed[place] for place in range(len(values))]
