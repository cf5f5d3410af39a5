"""The start of a run: a policy that writes the rows the other way is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures import models, runs

from spin_composer import HFSpinLM, build_spin_dataloader
from spin_composer.errors import InputError
from spin_composer.preflight.tokenization import (
    check_tokenize,
    differing_starts,
    prefers_other_tokenization,
)
from tests.data import templates
from tests.data.rows import load, write_questions

ANSWERS = ["The clips", "The relation", "The question", "The answer"]


@pytest.fixture(scope="module")
def tokenizer():
    return templates.metaspace("always", templates.ZEPHYR)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("rows") / "rows.jsonl", ANSWERS * 2)


def tuned(examples, tokenizer):
    """Return a tiny model after some steps of SFT on the responses."""
    model = models.tiny_model("llama", vocab_size=len(tokenizer))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(40):
        row = examples[step % len(examples)]
        ids = torch.from_numpy(np.concatenate([row.prompt, row.response]).astype(np.int64))[None]
        labels = ids.clone()
        labels[:, : len(row.prompt)] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("way", ["rendering", "turns"])
def test_a_tuned_model_refuses_the_other_way_and_runs_its_own(way, tokenizer, path):
    examples = {one: load(tokenizer, hf_name=path, tokenize=one) for one in ("rendering", "turns")}
    model = HFSpinLM.from_model(tuned(examples[way], tokenizer), tokenizer)
    other = "turns" if way == "rendering" else "rendering"
    size = len(tokenizer)
    assert len(differing_starts(examples[way])) == 8
    check_tokenize(examples[way], size, model.score, dict)
    with pytest.raises(InputError, match=rf"dataset.tokenize='{other}'.*Set tokenize: {way}\.$"):
        check_tokenize(examples[other], size, model.score, dict)


def test_a_random_model_is_no_evidence(tokenizer, path):
    examples = [load(tokenizer, hf_name=path, tokenize=one) for one in ("rendering", "turns")]
    for seed in range(5):
        model = models.tiny_model("llama", vocab_size=len(tokenizer), seed=seed)
        model = HFSpinLM.from_model(model, tokenizer)
        for one in examples:
            check_tokenize(one, len(tokenizer), model.score, dict)


def test_fit_begins_with_the_check(tokenizer, path, tmp_path):
    right = load(tokenizer, hf_name=path)
    model = HFSpinLM.from_model(tuned(right, tokenizer), tokenizer)
    dataset = {"hf_name": path, "split": "train", "max_seq_len": 64, "tokenize": "turns"}
    loader = build_spin_dataloader(tokenizer, 4, dataset=dataset)
    trainer = runs.tiny_trainer(tmp_path, model, train_dataloader=loader)
    with pytest.raises(InputError, match="Set tokenize: rendering"):
        trainer.fit()
    trainer.close()


def test_evidence_is_a_margin_in_most_rows_and_more_than_a_guess():
    assert not prefers_other_tokenization([], 1000)
    assert prefers_other_tokenization([[-6.0, -1.0]] * 4, 1000)
    assert not prefers_other_tokenization([[-3.0, -1.0]] * 4, 1000)  # both are likely
    assert not prefers_other_tokenization([[-12.0, -6.0]] * 4, 1000)  # neither is
    assert not prefers_other_tokenization(
        [[-30.0, -1.0], *[[-1.0, -2.0]] * 3], 1000
    )  # one row's matter
    assert not prefers_other_tokenization([[float("nan"), -1.0]], 1000)
