"""Rows that the data tests share, and the way to load them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_composer.data.examples import ExampleDataset
from spin_composer.data.sources import read_rows
from spin_composer.data.tokenization import build_examples
from spin_composer.settings.dataset import read_config

PLAIN = [
    {"prompt": "How many clips did she sell?\n", "response": "She sold 48/2 = 24 clips.\n#### 24"},
    {"prompt": "Night : Day :: Right :", "response": " Left"},
    {"prompt": "Answer the question", "response": " in one sentence."},
    {"prompt": "Unicode:", "response": " naïve café ½"},
]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Hello there"},
            {"role": "assistant", "content": "Hello, a question?"},
            {"role": "user", "content": "How many clips?"},
            {"role": "assistant", "content": "24 clips.\n#### 24"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "What is the relation?"},
            {"role": "assistant", "content": "They are opposites."},
        ]
    },
]


def nemo_chat(row: dict[str, Any]) -> dict[str, Any]:
    """Write a chat row as NeMo-Aligner does."""
    names = {"user": "User", "assistant": "Assistant"}
    turns = row["messages"]
    system = turns[0]["content"] if turns[0]["role"] == "system" else ""
    return {
        "system": system,
        "mask": "User",
        "type": "VALUE_TO_TEXT",
        "conversations": [
            {"from": names[turn["role"]], "value": turn["content"], "label": None}
            for turn in turns
            if turn["role"] != "system"
        ],
    }


def load(tokenizer: Any, max_seq_len: int = 512, **dataset: Any) -> ExampleDataset:
    """Build the examples of a ``dataset:`` block."""
    config = read_config({"max_seq_len": max_seq_len, **dataset})
    return build_examples(read_rows(config), tokenizer, config)


def write_questions(path: Path, answers: Sequence[str]) -> str:
    """Write chat rows, a question and its answer each; return their file."""
    rows = [
        [{"role": "user", "content": f"Question {i}"}, {"role": "assistant", "content": answer}]
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return str(path)


def everything(examples: ExampleDataset) -> list[Any]:
    """Return all that examples hold, except where they are kept."""
    origin = examples.origin
    assert origin is not None
    words = [
        getattr(turn["role"], "spelled", None)
        for _, _, row in origin.rows for turn in row.get("messages", ())
    ]  # fmt: skip
    return [
        *(array.tolist() for array in examples.arrays().values()), examples.lengths.tolist(),
        examples.fingerprint, examples.max_token_id, examples.kind, examples.report,
        examples.stop_rule, examples.stop_token_id, origin.rows, words,
        replace(origin.config, cache_dir=None),
        origin.warnings, origin.next_turn_stops, examples.alternative_stop_ids(),
        [way.differ for way in examples.tokenized_both_ways()],
    ]  # fmt: skip
