"""The ids of words, one after another, are those of the whole text."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from spin_composer.data import word_encoder
from spin_composer.data.word_encoder import WordEncoder, cuts_before_spaces
from tests.data import templates
from tests.fixtures import tokenizers

CONTROL = ("<|im_start|>", "<|im_end|>", "<|im_end|>>", "<tool_call>")
PIECES = (
    *CONTROL, "Hello", "there", "clips.", "48/2", "=24", "it's", "IT'S", "naïve", "½", "ﬁ", "é",
    "e\u0301", "\u0301", "日本", "...", "#### ", "<|im_", ">", "🙂", "\u200b", "\x1c", "\x85",
    "\ufeff", "'",
)  # fmt: skip
SPACES = (" ", " ", " ", "  ", "\n", "\n\n", "\t", " \n", "\n ", "\u00a0", "\u3000", "\r\n", "",
          "\x1c ", " \x1c", "\x1f")  # fmt: skip


def trained(pre_tokenizer: Any, normalizer: Any = None) -> Any:
    """Return a byte-level BPE backend with a pre-tokenizer."""
    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.normalizer = pre_tokenizer, normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    mixed = (a + b for a in PIECES for b in (" there", "\n\nclips", "  24", " \n"))
    odd = ["'\x1c there", "\u200b\x1c  24"] * 50  # so that tokens reach over the separators
    backend.train_from_iterator([*tokenizers.SENTENCES, *mixed, *odd], trainer)
    return backend


def by_pattern(pattern: str, **more: Any) -> Any:
    """Return a backend that splits by a pattern, as GPT-4's."""
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return trained(pre_tokenizers.Sequence([split, byte_level]), **more)


def byte_level(**more: Any) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **more)


def digits_first() -> Any:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return trained(pre_tokenizers.Sequence([digits, byte_level()]))


KNOWN: dict[str, Callable[[], Any]] = {
    "GPT-2": lambda: trained(byte_level()),
    "SmolLM2": digits_first,
    **{
        f"pattern {i}": lambda pattern=pattern: by_pattern(pattern)
        for i, pattern in enumerate(sorted(word_encoder._PATTERNS))
    },
    "Qwen2": lambda: by_pattern(
        min(word_encoder._PATTERNS, key=len), normalizer=normalizers.NFC()
    ),
}  # fmt: skip


def ids_of(backend: Any) -> Callable[[str], list[int]]:
    return lambda text: backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", KNOWN)
def test_ids_are_those_of_the_backend(name):
    backend, draw = KNOWN[name](), random.Random(5)
    assert cuts_before_spaces(backend)
    of_backend, of_words = ids_of(backend), WordEncoder(backend)
    for _ in range(3000):
        parts = draw.choices(PIECES, k=draw.randint(1, 9))
        whole = "".join(draw.choice(SPACES) + part for part in parts) + draw.choice(SPACES)
        prompt = whole[: draw.randint(0, len(whole))]
        assert list(of_words(whole)) == of_backend(whole), whole
        expected = of_backend(prompt), of_backend(whole)
        made = of_words.prompt_and_whole(prompt, whole)
        assert tuple(map(list, made)) == expected, (prompt, whole)


def test_words_are_forgotten_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr(word_encoder, "_MOST_PARTS", 10)
    backend = trained(byte_level())
    encode = WordEncoder(backend)
    text = " ".join(f"word{i}" for i in range(200)) + " " + "x" * 1000 + " end"
    assert list(encode(text)) == ids_of(backend)(text)
    assert len(encode._words) <= 10
    assert not any(len(part) > word_encoder._LONGEST for part in encode._words)


def with_token(token: AddedToken) -> Any:
    backend = trained(byte_level())
    backend.add_tokens([token])
    return backend


def split_special() -> Any:
    backend = trained(byte_level())
    backend.encode_special_tokens = True
    return backend


UNKNOWN: dict[str, Callable[[], Any]] = {
    "metaspace": lambda: templates.metaspace("first").backend_tokenizer,
    "sentencepiece": lambda: tokenizers.sentencepiece_like().backend_tokenizer,
    "a space put before": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "a pattern of its own": lambda: by_pattern(r"\w+ \w+|.|\s"),
    "another normalizer": lambda: trained(byte_level(), normalizers.NFKC()),
    "no pre-tokenizer": lambda: trained(None),
    "a token with a space": lambda: with_token(AddedToken("a b", normalized=False)),
    "a token that strips": lambda: with_token(AddedToken("<a>", lstrip=True, normalized=False)),
    "a word": lambda: with_token(AddedToken("<a>", single_word=True, normalized=False)),
    "a normalized token": lambda: with_token(AddedToken("<a>", normalized=True)),
    "split special tokens": split_special,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_tokenizers_are_not_encoded_so(name):
    assert not cuts_before_spaces(UNKNOWN[name]())
