"""Evaluations of other ids than training's are named in the log at the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from composer.core import Evaluator

from spin_composer import build_spin_dataloader, build_spin_evaluator
from spin_composer.data.loader import examples_of
from spin_composer.preflight.held_out import warn_about_tokenization_mismatch
from tests.data import templates
from tests.fixtures import tokenizers

ROWS = [
    {"messages": [{"role": "user", "content": f"Which {word}?"},
                  {"role": "assistant", "content": f"The {word} is here"}]}
    for word in ("clips", "relation", "answer")
]  # fmt: skip
PLAIN = [{"prompt": "Which clips?", "response": "The clips"}]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, rows in (("chat", ROWS), ("plain", PLAIN)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("chat", "plain")}


def warned(caplog: pytest.LogCaptureFixture, evaluator: Evaluator, spec: Any) -> str:
    caplog.clear()
    warn_about_tokenization_mismatch([evaluator], examples_of(spec))
    return caplog.text


def finetuning(tokenizer: Any, path: str) -> Evaluator:
    from llmfoundry.data.finetuning import build_finetuning_dataloader

    tokenizer.pad_token = tokenizer.eos_token
    dataset = {"hf_name": "json", "split": "train", "hf_kwargs": {"data_files": path}}
    dataset |= {"max_seq_len": 64, "decoder_only_format": True, "shuffle": False}
    loader = {"num_workers": 0, "pin_memory": False, "prefetch_factor": None}
    loader |= {"persistent_workers": False}
    spec = build_finetuning_dataloader(tokenizer, 1, dataset, **loader)
    return Evaluator(label="eval", dataloader=spec)


@pytest.mark.foundry
def test_llm_foundrys_loader_is_named_where_its_ids_differ(files: Any, caplog: Any) -> None:
    for tokenizer, said in (
        (templates.metaspace("always", templates.ZEPHYR), "on 3 of the first 3 rows"),
        (tokenizers.chatml(), ""),
    ):
        theirs = finetuning(tokenizer, files["chat"])
        dataset = {"hf_name": files["chat"], "max_seq_len": 64}
        text = warned(caplog, theirs, build_spin_dataloader(tokenizer, 1, dataset))
        assert said in text
        assert bool(text) == bool(said)
        dataset["tokenize"] = "turns"
        assert not warned(caplog, theirs, build_spin_dataloader(tokenizer, 1, dataset))


def test_our_loader_is_named_where_it_makes_other_ids(files: Any, caplog: Any) -> None:
    tokenizer = tokenizers.chatml()
    chat = {"hf_name": files["chat"], "max_seq_len": 64}
    spec = build_spin_dataloader(tokenizer, 1, chat)
    assert not warned(caplog, build_spin_evaluator(tokenizer, 1, chat), spec)
    turns = build_spin_evaluator(tokenizer, 1, {**chat, "tokenize": "turns"}, label="valid")
    text = warned(caplog, turns, spec)
    assert "metrics/valid" in text
    assert "tokenize is turns there and rendering in training" in text
    plain = build_spin_evaluator(tokenizer, 1, {**chat, "hf_name": files["plain"]})
    assert "(plain rows)" in warned(caplog, plain, spec)
