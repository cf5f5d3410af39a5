"""Rows of noise are read, or are bad rows with one line; nothing else ever comes of them."""

from __future__ import annotations

import datetime
import random

import numpy as np
import pytest

from spin_composer.data.counts import DataReport
from spin_composer.data.formats import BadRow, Location, to_foundry_row

COLUMNS = (
    "prompt", "response", "completion", "input", "output", "messages", "conversations", "chosen",
    "conversation", "real", "generated", "rejected", "tools", "functions", "system", "instruction",
    "context", "history", "label", "weight", "train", "mask", "type", "text", "documents", "Prompt",
    "chat_template_kwargs", "question", "answer", "reasoning", "data", "input_ids", 3, None,
)  # fmt: skip
KEYS = (
    "role", "from", "content", "value", "text", "tool_calls", "function_call", "name", "mask",
    "tool_call_id", "reasoning_content", "weight", "loss", "id", "input", "output", "human", 5,
)  # fmt: skip
TEXTS = (
    "", " ", "a", "user", "assistant", "tool", "gpt", "function_call", "[1]", "{}", "b\ud800",
    '{"name": "f", "arguments": "{}"}', '[{"role": "user", "content": "x"}]',
    "\n\nHuman: a\n\nAssistant: b",
)  # fmt: skip
OTHERS = (
    None, 0, 1, 0.0, True, False, float("nan"), 10**400, b"x", (1, 2), {1, 2},
    datetime.datetime(2020, 1, 1), np.array([1, 2]), np.float32(1),
)  # fmt: skip


def value(r: random.Random, depth: int = 0):
    kind = r.randrange(10)
    if kind < 4 or depth > 3:
        return r.choice(TEXTS)
    if kind < 6:
        return r.choice(OTHERS)
    if kind == 6:
        return [value(r, depth + 1) for _ in range(r.randrange(4))]
    if kind == 7:
        return {r.choice(KEYS): value(r, depth + 1) for _ in range(r.randrange(4))}
    return [turn(r, depth + 1) for _ in range(r.randrange(1, 4))]


def turn(r: random.Random, depth: int):
    made = {"role": r.choice(["user", "assistant", "system", "tool", "gpt"])}
    made["content"] = value(r, depth) if r.random() < 0.4 else "x"
    return {**made, **{r.choice(KEYS): value(r, depth + 1) for _ in range(r.randrange(3))}}


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_rows_of_noise_are_read_or_bad(filled, legacy):
    where = Location("noise", 1, "row", filled=filled)
    kinds, lines = set(), []
    for seed in range(4000):
        r = random.Random(seed)
        row = {r.choice(COLUMNS): value(r) for _ in range(r.randrange(1, 5))}
        try:
            kind, made = to_foundry_row(row, where, DataReport(), legacy)
        except BadRow as fault:
            lines.append(str(fault))
            continue
        kinds.add(kind)
        if kind == "plain":
            assert isinstance(made["prompt"], str)
            assert made["response"].strip()
            continue
        assert made["messages"][-1]["role"] == "assistant"
        for one in made["messages"]:
            assert isinstance(one["content"], str) or one["tool_calls"]
            assert all(text is not None for key, text in one.items() if key != "content")
    assert kinds == {"plain", "chat"}
    assert not [line for line in lines if "\n" in line or len(line.encode()) > 800]
