"""Encoding by a fast tokenizer's backend, one call for a prompt and the text that it begins.

transformers' own call costs a third more per text. And a prompt that a text begins with needs no
call: up to its last control token the text's ids are the prompt's, and what follows that token, a
chat template's name of the answer's role, is the same in each row.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import xxhash

from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.tokenizer_errors import TokenizerFailure, errors_as
from spin_composer.data.word_encoder import WordEncoder, cuts_before_spaces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Where the calls are defined that lead to the backend; a class that defines its own is called.
_OWN_CALLS = frozenset(
    f"transformers.tokenization_utils_{name}" for name in ("base", "fast", "tokenizers")
)
_CALLS = ("__call__", "_call_one", "encode_plus", "_encode_plus", "_batch_encode_plus")
_MOST_TAIL_TOKENS = 64
_latest: dict[tuple[int, str], tuple[Any, WordEncoder]] = {}
"""The words of the backend that was used last, by its identity and content; it stays alive."""


class FastEncoder:
    """Returns the ids that the tokenizer's call returns, without special tokens that it adds.

    Args:
        tokenizer: The model's tokenizer; one that is not fast is called as ever.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = text_tokenizer(tokenizer)
        self._backend: Any = _backend(tokenizer)
        self._control: dict[int, str] = {}
        self._split_special: bool | None = None
        self._words: WordEncoder | None = None
        self._tail = lru_cache(maxsize=1024)(self._encode_tail)

    def _prepare(self) -> None:
        self._call("a")  # sets truncation, padding and special tokens as all its calls do
        self._split_special = self._backend.encode_special_tokens
        if self._split_special or not _has_own_parts_only(self._backend):
            return
        if cuts_before_spaces(self._backend):
            self._words = _words_of(self._backend)
            return
        added: dict[int, Any] = self._backend.get_added_tokens_decoder()
        # These are found in the raw text first, so that what follows one changes nothing before
        # it; others depend on the text around them.
        self._control = {
            i: token.content for i, token in added.items()
            if not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        }  # fmt: skip

    def __call__(self, text: str) -> array[int]:
        """Return the ids of a text.

        Raises:
            TokenizerFailure: The tokenizer cannot encode it.
        """
        if not self._is_ready():
            return self._call(text)
        if self._words is None:
            return self._whole(text)
        with errors_as(TokenizerFailure):
            return self._words(text)

    def is_like_call(self, add_special_tokens: bool) -> bool:
        """Tell whether the tokenizer's call returns the same ids, as a text or a target."""
        backend = self._backend
        if backend is None:
            return False
        return not (add_special_tokens and backend.num_special_tokens_to_add(False))

    def prompt_and_whole(self, prompt: str, whole: str) -> tuple[array[int], array[int]]:
        """Return the ids of a prompt and of a text that may begin with it, each by itself.

        Raises:
            TokenizerFailure: The tokenizer cannot encode them.
        """
        if not (self._is_ready() and prompt and whole.startswith(prompt)):
            return self(prompt), self(whole)
        if self._words is not None:
            with errors_as(TokenizerFailure):
                return self._words.prompt_and_whole(prompt, whole)
        encoding = self._encoding(whole)
        ids = array("i", encoding.ids)
        last = encoding.char_to_token(len(prompt) - 1)
        for at in range(last, max(-1, last - _MOST_TAIL_TOKENS), -1) if last is not None else ():
            control = self._control.get(ids[at])
            if control is None:
                continue
            start, end = encoding.token_to_chars(at)
            if end > len(prompt) or whole[start:end] != control:
                break
            tail = self._tail(ids[at], prompt[end:])
            return (self(prompt) if tail is None else ids[: at + 1] + tail), ids
        return self(prompt), ids

    def _encode_tail(self, control: int, text: str) -> array[int] | None:
        """Return the ids of a text that follows a control token; None if they are not apart."""
        if not text:
            return array("i")
        ids = self._whole(self._control[control] + text)
        return ids[1:] if ids[0] == control else None

    def _whole(self, text: str) -> array[int]:
        return array("i", self._encoding(text).ids)

    def _encoding(self, text: str) -> Any:
        with errors_as(TokenizerFailure):
            return self._backend.encode(text, add_special_tokens=False)

    def _is_ready(self) -> bool:
        """Tell whether the backend is set as the tokenizer's call sets it."""
        backend = self._backend
        if backend is None:
            return False
        if self._split_special is None:
            self._prepare()
        return (
            backend.truncation is None and backend.padding is None
            and backend.encode_special_tokens == self._split_special
        )  # fmt: skip

    def _call(self, text: str) -> array[int]:
        with errors_as(TokenizerFailure):
            return array("i", self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _backend(tokenizer: Any) -> Any:  # fast or not: no type has both
    """Return the backend if the tokenizer's call leads straight to it, else None."""
    if not tokenizer.is_fast:
        return None
    methods = (getattr(type(tokenizer), name, None) for name in _CALLS)
    own = all(made is None or made.__module__ in _OWN_CALLS for made in methods)
    return tokenizer.backend_tokenizer if own else None


def _words_of(backend: Any) -> WordEncoder:
    """Return an encoder that knows the words that an earlier one of the same backend has met."""
    key = id(backend), xxhash.xxh3_128_hexdigest(backend.to_str().encode("utf-8", "surrogatepass"))
    if key not in _latest:
        _latest.clear()
        _latest[key] = backend, WordEncoder(backend)
    return _latest[key][1]


def _has_own_parts_only(backend: Any) -> bool:
    """Tell whether normalizer and pre-tokenizer are the library's: they take each part by itself.

    One that is written in Python is of the base class.
    """
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

    return (
        type(backend.normalizer) is not Normalizer
        and type(backend.pre_tokenizer) is not PreTokenizer
    )
