"""Encoding of texts from the ids of their words, each of which the backend encodes only once.

The pre-tokenizers of GPT-2, GPT-4, Llama 3 and Qwen split a text before each space that stands
between two characters that are not white space: a match of their patterns that holds a space after
its first character is white space altogether, and they look at nothing before a match. Byte-level
BPE then encodes each part separately. So the ids of a text are those of its words, and most words
of a data set were seen before. Control tokens are found before that, in the raw text, the longest
first. Tokenizers of which all this is not known are not encoded so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

# The patterns of tokenizers that split by one: GPT-4 and Llama 3, Qwen 2 and 3.
_PATTERNS = frozenset(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)  # fmt: skip
_CUT = re.compile(r"(?<=\S)(?= \S)")
_MOST_PARTS = 1 << 18
_LONGEST = 64


class _Uncut(Exception):
    """A space here is not between two other characters."""


class WordEncoder:
    """Encodes texts from the ids of their words.

    Args:
        backend: One for which :func:`cuts_before_spaces` is true.
        encode: Returns the backend's ids of a text, without special tokens that it adds.
    """

    def __init__(self, backend: Any, encode: Callable[[str], list[int]]) -> None:
        self._ids = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._parts, self._words = _Known(encode), _AfterSpace(encode)

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ids: list[int] = []
        for i, part in enumerate(self._split(text)):
            self._add(part, bool(i % 2), ids)
        return ids

    def prompt_and_whole(self, prompt: str, whole: str) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt, and of a text that begins with it."""
        ids: list[int] = []
        same = end = at = 0  # ids and characters up to the prompt's last control token
        for i, part in enumerate(self._split(whole)):
            self._add(part, bool(i % 2), ids)
            at += len(part)
            if i % 2 and at <= len(prompt):
                same, end = len(ids), at
        return [*ids[:same], *self(prompt[end:])], ids

    def _split(self, text: str) -> list[str]:
        """Return texts and, at odd places, the control tokens between them."""
        return self._control.split(text) if self._ids else [text]

    def _add(self, text: str, is_control: bool, ids: list[int]) -> None:
        if is_control:
            ids.append(self._ids[text])
            return
        if not text:
            return
        first, *words = text.split(" ")
        try:
            made = self._of_words(first, words)
        except _Uncut:
            made = [i for part in _CUT.split(text) for i in self._parts[part]]
        ids += made

    def _of_words(self, first: str, words: list[str]) -> list[int]:
        """Return the ids of words with a space before each but the first.

        Raises:
            _Uncut: White space stands beside one of the spaces.
        """
        if not words:
            return self._parts[first]
        if not first or first[-1].isspace() or not words[-1] or words[-1][0].isspace():
            raise _Uncut
        last = words.pop()  # nothing follows the white space that it may end with
        known = self._words
        made = [*self._parts[first]]
        for word in words:
            made += known[word]
        return made + self._parts[" " + last]


class _Known(dict[str, list[int]]):
    """The ids of parts of texts, found at the first time."""

    before = ""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, part: str) -> list[int]:
        ids = self._encode(self.before + part)
        if len(part) <= _LONGEST:
            if len(self) >= _MOST_PARTS:
                self.clear()
            self[part] = ids
        return ids


class _AfterSpace(_Known):
    """The ids of words after a space, by the word."""

    before = " "

    def __missing__(self, part: str) -> list[int]:
        if not part or part[0].isspace() or part[-1].isspace():
            raise _Uncut
        return super().__missing__(part)


def cuts_before_spaces(backend: Any) -> bool:
    """Return whether a backend is known to take the words of a text one by one.

    Args:
        backend: A ``tokenizers.Tokenizer`` whose parts can be written.
    """
    added = backend.get_added_tokens_decoder().values()
    # Others take the text around them into account, or are found after it is normalized.
    usual = all(
        not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        and not any(map(str.isspace, token.content)) for token in added
    )  # fmt: skip
    if not usual or backend.encode_special_tokens:
        return False
    normalizer, pre = (_state(part) for part in (backend.normalizer, backend.pre_tokenizer))
    return (
        normalizer in (None, {"type": "NFC"})
        and _cuts(pre)
        and type(backend.model).__name__ == "BPE"
        and not (backend.model.dropout or backend.model.continuing_subword_prefix)
    )


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _cuts(pre: Any) -> bool:
    """Tell whether a pre-tokenizer is one of those that are known."""
    parts = pre["pretokenizers"] if pre and pre["type"] == "Sequence" else [pre] if pre else []
    *before, last = parts or [{"type": ""}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    if last["use_regex"]:  # GPT-2's pattern; digits may be taken one by one before
        return all(part["type"] == "Digits" for part in before)
    return len(before) == 1 and before[0]["type"] == "Split" and (
        before[0]["pattern"].get("Regex") in _PATTERNS
        and before[0]["behavior"] == "Isolated" and not before[0]["invert"]
    )  # fmt: skip
