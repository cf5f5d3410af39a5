"""Rows tokenized by several processes give what one process gives."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin_composer.data import parallel, tokenization
from spin_composer.data.sources import read_rows
from spin_composer.data.tokenization import build_examples
from spin_composer.errors import EnvironmentFailure, InputError
from spin_composer.settings.dataset import read_config
from tests.data import templates
from tests.data.rows import CHAT, PLAIN, nemo_chat
from tests.data.test_formats import BAD
from tests.fixtures import tokenizers

PARENT = os.getpid()
ALONE = 64
SPELLED = {"prompt": "Say <|im_end|>", "response": "no"}
LONG = {"prompt": "clips " * 40, "response": "a long answer " * 40}
CALL = {"type": "function", "function": {"name": "sell", "arguments": {"clips": 3}}}
CALLS = [
    {"role": "user", "content": "Sell"},
    {"role": "assistant", "content": "Sure", "tool_calls": [CALL]},
    {"role": "tool", "content": "sold"},
    {"role": "assistant", "content": "Sold."},
]
OBSERVED = [
    {"role": "user", "content": "Sell"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "observation", "content": "sold"},
    {"role": "assistant", "content": "Sold."},
]
SPACE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]
CONVERSATION = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
PREFERENCE = {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}
ODD = {"messages": [*CHAT[1]["messages"][:1], {"role": "assistant", "content": "a", "index": 1}]}
UNREAD = {**CHAT[0], "system_instruction": "Answer in the manner of a clerk who sells clips."}


def mixed(usual: list[Any], *later: Any) -> list[Any]:
    """Return many rows, with some of another sort among the later ones."""
    rows = [usual[i % len(usual)] for i in range(200)]
    for i, row in enumerate(later):
        for at in (110 + 7 * i, 150 + 3 * i):
            rows.insert(at, row)
    return rows


def chatml():
    return tokenizers.chatml()


def shout(row: dict[str, Any]) -> dict[str, Any]:
    """Preprocess: the test's own function."""
    return {**row, "response": row["response"].upper()}


quiet = lambda row: {**row, "response": row["response"].lower()}  # noqa: E731


def kill_a_copy(row: dict[str, Any]) -> dict[str, Any]:
    """Preprocess: end a process that is not the test's."""
    if os.getpid() != PARENT:
        os.kill(os.getpid(), signal.SIGKILL)
    return row


HERE = "tests.data.test_parallel"
SKIP = {"on_bad_row": "skip"}
CASES: dict[str, tuple[Any, list[Any], dict[str, Any]]] = {
    "plain": (chatml, mixed(PLAIN), {}),
    "chat": (chatml, mixed(CHAT), {}),
    "nemo": (chatml, mixed([nemo_chat(row) for row in CHAT]), {}),
    "sharegpt": (chatml, mixed([{"conversations": CONVERSATION}], *CHAT), {}),
    "preferences": (chatml, mixed([PREFERENCE]), {}),
    "a preference after a while": (chatml, mixed(PLAIN, PREFERENCE), {}),
    "a column and keys of turns that are not read": (chatml, mixed(CHAT, ODD, {**ODD, "x": 1}), {}),
    "texts that are not read": (chatml, mixed(CHAT, UNREAD), {}),
    "llama": (tokenizers.sentencepiece_like, mixed(PLAIN), {}),
    "byte level": (tokenizers.byte_level, mixed(CHAT), {}),
    "slow": (tokenizers.Words, mixed(PLAIN), {}),
    "prompts that spell out control tokens": (chatml, mixed(PLAIN, SPELLED, SPELLED), {}),
    "spelled, as text": (chatml, mixed(PLAIN, SPELLED), {"special_tokens_in_text": "text"}),
    "spelled, an error": (chatml, mixed(PLAIN, SPELLED), {"special_tokens_in_text": "error"}),
    "too long": (
        chatml, mixed(PLAIN, LONG), {"truncate_prompt": "left", "max_prompt_len": 60}
    ),
    "too long, a bad row": (chatml, mixed(PLAIN, LONG), {"max_prompt_len": 20}),
    "bad rows": (chatml, mixed(PLAIN, *(row for _, row, _ in BAD)), {}),
    "bad rows, skipped": (chatml, mixed(PLAIN, *(row for _, row, _ in BAD)), SKIP),
    "both kinds": (chatml, mixed(PLAIN, CHAT[0]), {}),
    "both kinds, skipped": (chatml, mixed(PLAIN, CHAT[0]), SKIP),
    "no good row": (chatml, mixed([BAD[2][1]]), SKIP),
    "a boundary within a token": (
        lambda: templates.metaspace("first", templates.ENDS_IN_SPACE), mixed([{"messages": SPACE}]),
        {},
    ),
    "and skipped": (
        lambda: templates.metaspace("first", templates.ENDS_IN_SPACE),
        mixed([{"messages": SPACE}], *CHAT), SKIP,
    ),
    "turns": (chatml, mixed(CHAT), {"tokenize": "turns"}),
    "calls that the template knows nothing of": (
        chatml, mixed(CHAT, {"messages": CALLS}), SKIP
    ),
    "roles in the row's own words": (
        lambda: _with_template(templates.REASONING), mixed(CHAT, {"messages": OBSERVED}), {}
    ),
    "today's date": (lambda: _with_template(templates.DATED), mixed(CHAT), {}),
    "a date": (
        lambda: _with_template(templates.DATED), mixed(CHAT), {"date_string": "26 Jul 2024"}
    ),
    "a function": (chatml, mixed(PLAIN), {"preprocessing_fn": f"{HERE}:shout"}),
    "a lambda": (chatml, mixed(PLAIN), {"preprocessing_fn": f"{HERE}:quiet"}),
    "a function that fails": (
        chatml, mixed(PLAIN, {"prompt": "a"}), {"preprocessing_fn": f"{HERE}:shout"}
    ),
    "columns": (
        chatml, mixed([{"q": "a question", "a": "b"}]),
        {"preprocessing_fn": {"prompt": "q", "response": "a"}},
    ),
}  # fmt: skip


def _with_template(template: str) -> Any:
    tokenizer = tokenizers.chatml()
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_ALONE_ROWS", ALONE)
    monkeypatch.setattr(parallel, "_CHUNK_ROWS", 8)


def outcome(
    path: Path, tokenizer: Any, keys: dict[str, Any], processes: int, legacy: bool, log: Any
) -> list[Any]:
    """Return all that comes of a data set's rows."""
    log.clear()
    config = read_config(
        {"max_seq_len": 100, "hf_name": str(path), "num_proc": processes, **keys}
    )
    try:
        made = build_examples(read_rows(config), tokenizer, config, legacy=legacy)
    except InputError as error:
        return [type(error), str(error), repr(error.__cause__), *log.messages]
    assert made.origin is not None
    words = [
        getattr(turn["role"], "spelled", None)
        for _, _, row in made.origin.rows for turn in row.get("messages", ())
    ]  # fmt: skip
    arrays = [array.tolist() for array in made.arrays().values()]
    return [
        *arrays, made.fingerprint, made.kind, made.report, made.stop_rule, made.origin.rows, words,
        made.origin.warnings, *log.messages,
    ]  # fmt: skip


LEGACY = ("plain", "chat", "nemo", "bad rows, skipped", "today's date")


@pytest.mark.parametrize(
    ("name", "legacy"),
    [*((name, False) for name in CASES), *((name, True) for name in LEGACY)],
)
def test_several_processes_give_what_one_gives(name, legacy, tmp_path, caplog):
    make, rows, keys = CASES[name]
    path = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    caplog.set_level(logging.INFO)
    one, three = (
        outcome(path, make(), keys, processes, legacy, caplog) for processes in (1, 3)
    )
    assert one == three


def test_other_processes_do_tokenize(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed(PLAIN)))
    keys = {"preprocessing_fn": f"{HERE}:kill_a_copy"}
    with pytest.raises(EnvironmentFailure, match=r"was killed.*num_proc"):
        outcome(path, chatml(), keys, 2, False, caplog)
    outcome(path, chatml(), keys, 1, False, caplog)


def test_counts_add_up(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed(PLAIN)))
    config = read_config({"max_seq_len": 100, "hf_name": str(path), "num_proc": 2})
    made = build_examples(read_rows(config), chatml(), config)
    assert (len(made), made.report.rows, made.report.kept) == (200, 200, 200)
    assert np.array_equal(made[4].prompt, made[196].prompt)
