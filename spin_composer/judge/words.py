"""How measures cut a text into words: runs of letters and digits, and each other mark by itself."""

from __future__ import annotations

import re

WORD = r"\w+|[^\w\s]"
"""Pattern of a word."""

_WORDS = re.compile(WORD)


def split_words(text: str) -> list[str]:
    """Return the words of a text."""
    return _WORDS.findall(text)


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """Return the n-grams of words, in order."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))
