"""Encoding of texts from the ids of their words, each of which the backend encodes only once.

The pre-tokenizers of GPT-2, GPT-4, Llama 3 and Qwen split a text before each space that stands
between two characters that are not white space: a match of their patterns that holds a space after
its first character is white space altogether, and they look at nothing before a match. They also
split before all the white space that follows a character that is none; the newer patterns except
where it begins with line ends, which a match of punctuation takes with it. Byte-level
BPE then encodes each part separately. So the ids of a text are those of its words, and most words
of a data set were seen before. Control tokens are found before that, in the raw text, the longest
first. Tokenizers of which all this is not known are not encoded so.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from typing import Any

# The patterns of tokenizers that split by one: GPT-4 and Llama 3, Qwen 2 and 3.
_PATTERNS = frozenset(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}{1,3}", r"\p{N}")
)  # fmt: skip
_WHITE = re.compile(r"\s\s+")
# White space for Python, but not for the pre-tokenizers.
_SEPARATORS = re.compile("[\x1c-\x1f]")
_MOST_PARTS = 1 << 16
_LONGEST = 64


class _Odd(Exception):
    """A space here is not between two other characters."""


class WordEncoder:
    """Encodes texts from the ids of their words.

    Args:
        backend: One for which :func:`cuts_before_spaces` is true; what it raises, a call raises.
    """

    def __init__(self, backend: Any) -> None:
        added = backend.get_added_tokens_decoder().items()
        self._ids = {token.content: _as_bytes([i]) for i, token in added}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._parts, self._words = _Known(backend), _AfterSpace(backend)
        self._kept_on = "" if _has_oldest_pattern(backend) else "\r\n"

    def __call__(self, text: str) -> array[int]:
        """Return the ids of a text."""
        found: list[bytes] = []
        for i, part in enumerate(self._split(text)):
            found += self._encoded(part, bool(i % 2))
        return _as_ids(found)

    def prompt_and_whole(self, prompt: str, whole: str) -> tuple[array[int], array[int]]:
        """Return the ids of a prompt, and of a text that begins with it."""
        found: list[bytes] = []
        same = end = at = 0  # parts and characters up to the prompt's last control token
        for i, text in enumerate(self._split(whole)):
            found += self._encoded(text, bool(i % 2))
            at += len(text)
            if i % 2 and at <= len(prompt):
                same, end = len(found), at
        return _as_ids(found[:same]) + self(prompt[end:]), _as_ids(found)

    def _split(self, text: str) -> list[str]:
        """Return texts and, at odd places, the control tokens between them."""
        return self._control.split(text) if self._ids else [text]

    def _encoded(self, text: str, is_control: bool) -> list[bytes]:
        """Return the ids of a text's parts, or of a control token."""
        if is_control:
            return [self._ids[text]]
        if not text:
            return []
        if _SEPARATORS.search(text):
            return [self._parts[text]]
        try:
            return self._of_words(text, is_start=True)
        except _Odd:
            return self._of_parts(text)

    def _of_parts(self, text: str) -> list[bytes]:
        """Return the ids of a text with spaces that are not between two other characters."""
        parts: list[bytes] = []
        at = 0
        for start, end in _odd_parts(text, self._kept_on):
            if start > at:
                parts += self._of_words(text[at:start], is_start=not at)
            parts.append(self._parts[text[start:end]])
            at = end
        return parts if at == len(text) else parts + self._of_words(text[at:], is_start=False)

    def _of_words(self, text: str, is_start: bool) -> list[bytes]:
        """Return the ids of words with a space before each but the first of a whole text.

        Raises:
            _Odd: White space stands beside one of the spaces.
        """
        *words, last = text.split(" ")
        if not words:
            return [self._parts[last]]
        if not last or last[0].isspace():
            raise _Odd
        first = words.pop(0)
        made = []
        if is_start:
            if not first or first[-1].isspace():
                raise _Odd
            made.append(self._parts[first])
        made += map(self._words.__getitem__, words)
        made.append(self._parts[f" {last}"])  # nothing follows the white space that it may end with
        return made


def _odd_parts(text: str, kept_on: str) -> Iterator[tuple[int, int]]:
    """Yield where the parts with a space that is not between two other characters start and end.

    Args:
        text: Not empty.
        kept_on: White space that begins with one of these is no start of a part: the part starts
            at the space before, as a word does.
    """
    runs = [run.span() for run in _WHITE.finditer(text) if " " in run[0]]
    if text[0] == " " and not (runs and runs[0][0] == 0):
        runs.insert(0, (0, 1))
    if text[-1] == " " and not (runs and runs[-1][1] == len(text)):
        runs.append((len(text) - 1, len(text)))
    start, end = -1, 0  # of the part that is open
    for first, last in runs:
        splits = text[first] not in kept_on
        if start >= 0:
            cut = text.find(" ", end, first)
            if cut >= 0 or splits:
                end = cut if cut >= 0 else first
                yield start, end
                start = -1
        if start < 0:
            start = first if splits else max(text.rfind(" ", end, first), end)
        end = last
    if start >= 0:
        cut = text.find(" ", end)
        yield start, cut if cut >= 0 else len(text)


class _Known(dict[str, bytes]):
    """The ids of parts of texts, found at the first time."""

    before = ""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        self._encode = backend.encode

    def __missing__(self, part: str) -> bytes:
        ids = _as_bytes(self._encode(self.before + part, add_special_tokens=False).ids)
        if len(part) <= _LONGEST:
            if len(self) >= _MOST_PARTS:
                self.clear()
            self[part] = ids
        return ids


class _AfterSpace(_Known):
    """The ids of words after a space, by the word."""

    before = " "

    def __missing__(self, part: str) -> bytes:
        if not part or part[0].isspace() or part[-1].isspace():
            raise _Odd
        return super().__missing__(part)


def _as_bytes(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def _as_ids(parts: list[bytes]) -> array[int]:
    return array("i", b"".join(parts))


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


def _has_oldest_pattern(backend: Any) -> bool:
    """Tell whether the pattern is GPT-2's, in which no match but white space ends with it."""
    pre = _state(backend.pre_tokenizer)
    return (pre["pretokenizers"][-1] if pre["type"] == "Sequence" else pre)["use_regex"]


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
