"""The part of a tokenizer that encodes and decodes text, with the types that are returned.

transformers' annotations of PreTrainedTokenizerBase cover every tokenizer and every option at
once: ids may be tensors or batches, and rendered chats may be ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast, overload

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextTokenizer(Protocol):
    """A tokenizer that is called with one text and without ``return_tensors``."""

    bos_token_id: int | None
    chat_template: str | dict[str, str] | None
    name_or_path: str

    def __call__(
        self, text: str, *, text_target: str | None = None, add_special_tokens: bool = True
    ) -> Mapping[str, list[int]]:
        """Return ``input_ids``, and ``labels`` if there is a ``text_target``."""
        ...

    def decode(
        self, token_ids: Sequence[int] | np.ndarray, *, skip_special_tokens: bool = False
    ) -> str:
        """Return the text of ids."""
        ...

    @overload
    def convert_ids_to_tokens(self, ids: int) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[object] | None,
        chat_template: str | None,
        add_generation_prompt: bool,
        tokenize: bool,
        **arguments: object,
    ) -> str:
        """Return the turns' text; ``tokenize`` is False."""
        ...

    def get_chat_template(self, chat_template: str | None, tools: Sequence[object] | None) -> str:
        """Return the template for turns with these tools."""
        ...


def text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> TextTokenizer:
    """Return the same tokenizer, typed for calls with one text."""
    return cast(TextTokenizer, tokenizer)
