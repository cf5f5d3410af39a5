"""Tokenization of the whole text at once, split where the prompt ends.

A model that was tuned on whole texts generates the tokens that follow the prompt in the whole text.
A response that is encoded separately begins differently: SentencePiece marks the start of a text.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from spin_composer.data.bad_row import DROP_SUCH_ROWS, BadRow, Location
from spin_composer.data.fast_encoder import FastEncoder
from spin_composer.data.text_tokenizer import TextTokenizer, text_tokenizer
from spin_composer.errors import format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USE_TURNS_REMEDY = "For a model that llm-foundry tuned, set train_loader.dataset.tokenize: turns"
END_BEFORE_TOKEN = (
    "train_loader.dataset.generation_prompt: response, by which the prompt ends before that token"
)
_BEFORE, _AFTER = 3, 4
_SHOWN_TOKENS = 12
Encode = Callable[[str], list[int]]


class BoundaryError(BadRow):
    """The prompt's tokens are not a prefix of the whole text's."""


class GenerationPromptError(BoundaryError):
    """So it is, and the prompt could end within the template's generation prompt."""


class FullTextTokenizer:
    """Encodes the prompt and the whole text, and splits the whole into prompt and response.

    Args:
        tokenizer: The model's tokenizer.
        with_special: Add the tokens that the tokenizer adds before a text (BOS), for plain rows;
            chat templates write their own. Tokens that it adds after a text (EOS) are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, with_special: bool) -> None:
        self._tokenizer = text_tokenizer(tokenizer)
        self.encode = FastEncoder(tokenizer)
        self._before = array("i")
        if with_special:
            inner, outer = self.encode("a"), array("i", self._tokenizer("a")["input_ids"])
            starts = range(len(outer) - len(inner) + 1)
            start = next((i for i in starts if outer[i : i + len(inner)] == inner), 0)
            self._before = outer[:start]

    def __call__(
        self, prompt: str, whole: str, where: Location, encode: Encode | None = None
    ) -> tuple[array[int], array[int]]:
        """Return the prompt's ids and the response's.

        Raises:
            BoundaryError: The whole text's ids do not begin with the prompt's.
        """
        if encode is None:
            both = self.encode.prompt_and_whole(prompt, whole)
            ids, all_ids = (self._drop_duplicate_bos(self._before + found) for found in both)
        else:
            ids, all_ids = (self._ids(text, encode) for text in (prompt, whole))
        if all_ids[: len(ids)] != ids:
            raise self._boundary_error(ids, all_ids, where)
        return ids, all_ids[len(ids) :]

    def cut_within(
        self, start: str, prompt: str, whole: str, encode: Encode | None = None
    ) -> tuple[array[int], array[int], array[int]] | None:
        """Return ids as of a prompt that ends where its ids and the whole's part.

        Args:
            start: What the prompt must hold at least.
            prompt: The prompt's text.
            whole: The whole's.
            encode: Encodes a text; the tokenizer by default.

        Returns:
            The prompt's ids, the response's, and those that the prompt lacks; None if they part
            before ``start`` ends.
        """
        least, ids, all_ids = (self._ids(text, encode) for text in (start, prompt, whole))
        pairs = enumerate(zip(ids, all_ids, strict=False))
        end = next((i for i, (a, b) in pairs if a != b), min(len(ids), len(all_ids)))
        if len(least) > end or all_ids[: len(least)] != least:
            return None
        return all_ids[:end], all_ids[end:], ids[end:]

    def _ids(self, text: str, encode: Encode | None) -> array[int]:
        found = self.encode(text) if encode is None else array("i", encode(text))
        return self._drop_duplicate_bos(self._before + found)

    def _drop_duplicate_bos(self, ids: array[int]) -> array[int]:
        # The text spells out BOS, and the tokenizer or the template adds it as well.
        bos = self._tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2].tolist() == [bos, bos] else ids

    def _boundary_error(
        self, ids: array[int], all_ids: array[int], where: Location
    ) -> BoundaryError:
        pairs = enumerate(zip(ids, all_ids, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(ids), len(all_ids)))
        part = slice(max(0, at - _BEFORE), at + _AFTER)
        alone, inside = (format_tokens(self._tokenizer, some[part]) for some in (ids, all_ids))
        return BoundaryError(
            where, "a token spans prompt and response",
            f"the prompt by itself ends in the tokens {alone}, but the whole row has {inside}",
            "Let the prompt end where a token ends (a space belongs to the response's start), "
            f"{DROP_SUCH_ROWS} {_USE_TURNS_REMEDY}.",
        )  # fmt: skip


def format_tokens(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """Return the tokens as text, for messages."""
    shortened = list(map(int, ids[:_SHOWN_TOKENS]))
    names = list(map(str, tokenizer.convert_ids_to_tokens(shortened)))
    return f"[{', '.join(map(repr, names))}{', ...' if len(ids) > _SHOWN_TOKENS else ''}]"


def boundary_failures_message(
    tokenizer: PreTrainedTokenizerBase, kind: str, fault: BoundaryError, failed: int, tried: int
) -> str:
    """Return the message for data of which most rows fail at the boundary."""
    what = (
        f"the chat template of {format_value(tokenizer.name_or_path)} ends its generation prompt"
        if kind == "chat" else "the prompts end"
    )  # fmt: skip
    else_remedy = "end the prompt where a token ends (no space at its end)"
    if isinstance(fault, GenerationPromptError):
        else_remedy = f"set {END_BEFORE_TOKEN}"
    return (
        f"{fault.where}: {fault.problem}. So it is in {failed} of {tried} rows: {what} within a "
        f"token. {_USE_TURNS_REMEDY}; else {else_remedy}."
    )
