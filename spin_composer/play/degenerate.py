"""Generated responses that equal the real one: they would teach nothing, or only a tokenization.

The same ids give no gradient. Different ids of the same text do: a model that generates ``The``
where the data has ``▁The`` would learn that token, and its accuracy would be 1 for that alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from spin_composer.data.pairs import Ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BY_IDS, BY_TEXT = "ids", "text"
"""Values of the manifest's field ``degenerate``; a manifest without it was played by ids."""

Comparison = Callable[[Sequence[Ids], Sequence[Ids]], list[bool]]
"""(real responses, generated ones) -> which of the pairs are degenerate."""

_NO_CHARACTER = "\ufffd"


def same_ids(real: Sequence[Ids], generated: Sequence[Ids]) -> list[bool]:
    """Return which generated responses [G] have the ids of the real ones [R]."""
    return [np.array_equal(r, g) for r, g in zip(real, generated, strict=True)]


def same_texts(tokenizer: PreTrainedTokenizerBase, stop_token_id: int) -> Comparison:
    """Return the comparison by ids or by decoded text.

    Texts are the same if they read the same: different control tokens make a different response,
    but the stop token is ignored, so that a response cut off just before it is a duplicate.
    """
    special = np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int32)

    def read(responses: Sequence[Ids]) -> list[tuple[str, list[int]]]:
        bodies = [x[:-1] if len(x) and x[-1] == stop_token_id else x for x in responses]
        texts = tokenizer.batch_decode(
            cast(Any, bodies), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [(t, b[np.isin(b, special)].tolist()) for t, b in zip(texts, bodies, strict=True)]

    def compare(real: Sequence[Ids], generated: Sequence[Ids]) -> list[bool]:
        pairs = zip(read(real), read(generated), strict=True)
        # Invalid bytes all decode to the same character.
        texts = [r == g and _NO_CHARACTER not in r[0] for r, g in pairs]
        return [a or b for a, b in zip(same_ids(real, generated), texts, strict=True)]

    return compare


def duplicate_check_for(
    mode: str, tokenizer: PreTrainedTokenizerBase, stop_token_id: int
) -> Comparison:
    """Return an iteration's comparison; one that was started by ids is finished by ids."""
    return same_texts(tokenizer, stop_token_id) if mode == BY_TEXT else same_ids
