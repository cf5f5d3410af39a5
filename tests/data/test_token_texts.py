from __future__ import annotations

import numpy as np
import pytest
from fixtures import tokenizers

from spin_composer.data.token_texts import token_texts

TEXTS = [
    " red green\n\n  blue", "Natalia sold 48 clips.", "naïve café, 北京, 🦊🦊 and e\u0301", "",
    "</s>", "trailing space ",
]  # fmt: skip


@pytest.mark.parametrize("family", ["byte_level", "chatml", "sentencepiece_like"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_texts_of_tokens_are_the_text_of_all(family: str, text: str) -> None:
    tokenizer = getattr(tokenizers, family)()
    ids = np.asarray(tokenizer(text)["input_ids"], np.int32)
    found = token_texts(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_is_the_last_ones() -> None:
    tokenizer = tokenizers.byte_level()
    ids = np.asarray(tokenizer("🦊x")["input_ids"], np.int32)
    assert len(ids) == 5
    assert token_texts(tokenizer, ids) == ["", "", "", "🦊", "x"]


def test_a_response_cut_within_a_character_keeps_what_is_there() -> None:
    tokenizer = tokenizers.byte_level()
    ids = np.asarray(tokenizer("x🦊")["input_ids"], np.int32)[:-1]
    found = token_texts(tokenizer, ids)
    assert found[0] == "x"
    assert "".join(found) == tokenizer.decode(ids)
