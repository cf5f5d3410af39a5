"""Ids straight from the backend are those of the tokenizer's own call, wherever a prompt ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken

from spin_composer.data.fast_encoder import FastEncoder
from tests.data import templates
from tests.fixtures import tokenizers

TEXTS = (
    "<|im_start|>", "<|im_end|>", "\n", "assistant\n", "user\n", "Hello there", " ", "  ", "½ ﬁ",
    "She sold 48/2 clips", "<s>", "</s>", "<|im_", "naïve", "<mark>", " <mark> ", "[INST]", "!",
)  # fmt: skip


def marked(**flags: bool) -> Callable[[], Any]:
    """Return a function that makes a tokenizer with an added token of these flags."""

    def make() -> Any:
        tokenizer: Any = tokenizers.sentencepiece_like()
        tokenizer.add_tokens([AddedToken("<mark>", **flags)])
        return tokenizer

    return make


TOKENIZERS: dict[str, Callable[[], Any]] = {
    **tokenizers.ALL,
    "slow": tokenizers.Words,
    **{f"metaspace {way}": lambda way=way: templates.metaspace(way)
       for way in ("normalizer", "always", "first", "never")},
    "stripping": marked(lstrip=True, rstrip=True, special=True),
    "word": marked(single_word=True, special=True),
    "normalized": marked(normalized=True),
    "plain": marked(normalized=False),
}  # fmt: skip


def called(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_those_of_the_tokenizers_call(name):
    tokenizer, draw = TOKENIZERS[name](), random.Random(3)
    encode = FastEncoder(tokenizer)
    for _ in range(300):
        whole = "".join(draw.choices(TEXTS, k=draw.randint(1, 12)))
        prompt = whole[: draw.randint(0, len(whole))]
        expected = called(tokenizer, prompt), called(tokenizer, whole)
        made = encode.prompt_and_whole(prompt, whole)
        assert tuple(map(list, made)) == expected, (prompt, whole)
        assert list(encode(whole)) == expected[1]
        assert list(encode.prompt_and_whole("other", whole)[0]) == called(tokenizer, "other")


def test_a_prompt_of_a_chat_costs_no_call_of_its_own(monkeypatch):
    encode, texts = FastEncoder(TOKENIZERS["plain"]()), []
    usual = encode._encoding
    monkeypatch.setattr(encode, "_encoding", lambda text: texts.append(text) or usual(text))
    for i in range(3):
        prompt = f"<mark>user {i}<mark>assistant:"
        encode.prompt_and_whole(prompt, prompt + " Hello<mark>")
    assert len(texts) == 4, "one for each row, and one for what all prompts end with"


def test_a_word_of_a_byte_level_tokenizer_is_encoded_once():
    encode, texts = FastEncoder(tokenizers.chatml()), []
    encode("")
    assert encode._words is not None
    for known in (encode._words._parts, encode._words._words):

        def noted(text: str, usual: Any = known._encode, **more: Any) -> Any:
            texts.append(text)
            return usual(text, **more)

        known._encode = noted
    for whole in ("Hello there, Natalia sold clips", "there, sold she Hello sold clips"):
        encode.prompt_and_whole("", whole)
    assert texts == [
        "Hello", " there,", " Natalia", " sold", " clips", "there,", " she", " Hello"
    ]  # fmt: skip


@pytest.mark.parametrize("split", [False, True])
def test_a_backend_that_others_have_set_is_called_as_ever(split):
    tokenizer = tokenizers.chatml()
    encode = FastEncoder(tokenizer)
    text = "<|im_start|>user\nHello there<|im_end|>"
    ids = encode(text)
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(2)
    backend.enable_padding(length=40)
    backend.encode_special_tokens = split
    assert encode(text) == ids


def test_a_tokenizer_with_a_call_of_its_own_is_called():
    class Shouting(type(tokenizers.chatml())):
        def __call__(self, text: str, **more: Any) -> Any:
            return super().__call__(text.upper(), **more)

    tokenizer = tokenizers.chatml()
    tokenizer.__class__ = Shouting
    encode = FastEncoder(tokenizer)
    assert encode("Hello") == encode.prompt_and_whole("", "Hello")[1]
    assert list(encode("Hello")) == called(tokenizer, "Hello")


def test_words_are_shared_by_encoders_of_a_backend_as_long_as_it_is_the_same():
    tokenizer = tokenizers.chatml()
    one, other = FastEncoder(tokenizer), FastEncoder(tokenizer)
    assert one("Hello there clips") == other("Hello there clips")
    assert one._words is other._words
    tokenizer.add_tokens([AddedToken("clips", normalized=False)])
    third = FastEncoder(tokenizer)
    assert list(third("Hello there clips")) == called(tokenizer, "Hello there clips")
    assert third._words is not one._words
    fourth = FastEncoder(tokenizers.chatml())
    assert fourth("Hello there clips") == one("Hello there clips")
    assert fourth._words is not third._words
