"""A tokenizer that gives a text other ids each time is refused where it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures import tokenizers
from fixtures.runs import write_rows

from spin_composer import build_spin_dataloader
from spin_composer.data.tokenizers import load_tokenizer
from spin_composer.errors import InputError

TEXT = "red green blue cat dog " * 20


def saved(folder: Path, dropout: float | None) -> str:
    """Save a BPE tokenizer with this dropout; return its folder."""
    tokenizers.byte_level().save_pretrained(folder)
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())
    whole["model"]["dropout"] = dropout
    file.write_text(json.dumps(whole))
    return str(folder)


def test_bpe_dropout_gives_a_text_other_ids_each_time(tmp_path: Path):
    tokenizer = tokenizers.byte_level()
    tokenizer.backend_tokenizer.model.dropout = 0.5
    assert len({tuple(tokenizer(TEXT)["input_ids"]) for _ in range(5)}) > 1


def test_a_tokenizer_with_bpe_dropout_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"model\.dropout=0\.5.*tokenizer\.json") as error:
        load_tokenizer(saved(tmp_path, 0.5))
    assert len(str(error.value).splitlines()) == 1


def test_a_run_refuses_it_before_its_rows_are_read(tmp_path: Path):
    tokenizer = tokenizers.byte_level()
    tokenizer.backend_tokenizer.model.dropout = 0.1
    dataset = {"hf_name": str(tmp_path / "absent.jsonl"), "split": "train", "max_seq_len": 64}
    with pytest.raises(InputError, match=r"model\.dropout=0\.1"):
        build_spin_dataloader(tokenizer, 4, dataset)


@pytest.mark.parametrize("dropout", [None, 0.0])
def test_a_tokenizer_without_dropout_is_loaded(tmp_path: Path, dropout: float | None):
    tokenizer = load_tokenizer(saved(tmp_path, dropout))
    assert len({tuple(tokenizer(TEXT)["input_ids"]) for _ in range(5)}) == 1  # pyright: ignore
    rows = write_rows(tmp_path / "rows.jsonl")
    dataset = {"hf_name": str(rows), "split": "train", "max_seq_len": 64}
    assert build_spin_dataloader(tokenizer, 4, dataset)
