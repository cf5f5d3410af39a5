"""``preprocessing_fn``: functions that come with the package."""

from __future__ import annotations

import json

import pytest

from spin_composer.errors import InputError
from tests.data.rows import load
from tests.fixtures import tokenizers

AS_CHAT = "spin_composer.data.preprocess:as_chat"


def test_plain_rows_as_turns_are_those_of_the_conversation(tmp_path):
    tokenizer = tokenizers.chatml()
    plain, chat = tmp_path / "plain.jsonl", tmp_path / "chat.jsonl"
    plain.write_text(json.dumps({"prompt": "What is 2 + 2?\n", "response": " It is 4.\n"}))
    turns = [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "It is 4."},
    ]
    chat.write_text(json.dumps({"messages": turns}))
    made = load(tokenizer, hf_name=str(plain), preprocessing_fn=AS_CHAT)
    meant = load(tokenizer, hf_name=str(chat))
    assert made.kind == "chat"
    assert made[0].prompt.tolist() == meant[0].prompt.tolist()
    assert made[0].response.tolist() == meant[0].response.tolist()


def test_a_row_without_the_columns_is_named(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "What is 2 + 2?", "response": "4"}))
    with pytest.raises(InputError, match=r"preprocessing_fn fails with KeyError: .*prompt"):
        load(tokenizers.chatml(), hf_name=str(rows), preprocessing_fn=AS_CHAT)
