"""The start of a run: a policy that ends its answers with another token is refused."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from fixtures import models, runs
from fixtures.ranks import on_two_ranks

from spin_composer import HFSpinLM, build_spin_dataloader
from spin_composer.errors import InputError
from spin_composer.preflight.stop import check_stop, preferred_token, whole_rows
from tests.data import templates
from tests.data.rows import load, write_questions
from tests.fixtures import tokenizers

ANSWERS = ["The clips", "The relation", "A question", "24 in May"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_questions(tmp_path_factory.mktemp("rows") / "rows.jsonl", ANSWERS * 2)


@pytest.fixture(scope="module")
def glm():
    return templates.chatml(templates.GLM4, *templates.GLM4_ADDED)


def tuned(tokenizer, steps=60):
    """Return a tiny model after SFT on whole conversations, all of their tokens."""
    model = models.tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        turns = [
            {"role": role, "content": text}
            for i in (step, step + 1)
            for role, text in (
                ("user", f"Question {i % 8}"), ("assistant", ANSWERS[i % 4])
            )
        ]  # fmt: skip
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def tuned_glm(glm):
    return HFSpinLM.from_model(tuned(glm), glm)


def test_the_mark_that_begins_the_next_turn_is_what_a_tuned_model_writes(glm, tuned_glm, rows):
    check_stop(load(glm, hf_name=rows), glm, tuned_glm.score, dict)


def test_a_token_that_the_model_never_writes_is_refused_and_the_remedy_works(
    glm, tuned_glm, rows, caplog
):
    earlier = load(glm, hf_name=rows).with_earlier_stop()
    assert earlier is not None
    with pytest.raises(InputError, match=r"Set train_loader\.dataset\.stop_token: '<\|user\|>'\.$"):
        check_stop(earlier, glm, tuned_glm.score, dict)
    check_stop(load(glm, hf_name=rows, stop_token="<|user|>"), glm, tuned_glm.score, dict)
    with caplog.at_level(logging.WARNING, "spin_composer"):  # whoever sets it may mean it
        by_hand = load(glm, hf_name=rows, stop_token="<|endoftext|>")
        check_stop(by_hand, glm, tuned_glm.score, dict)
    assert "which the model does not write" in caplog.text


def test_an_end_of_turn_that_is_text_to_the_tokenizer_is_refused(rows):
    tokenizer = tokenizers.byte_level()
    tokenizer.chat_template = tokenizers.CHATML
    model = HFSpinLM.from_model(tuned(tokenizer), tokenizer)
    with pytest.raises(InputError, match=r"is an ordinary token.*Set train_loader\.dataset\."):
        check_stop(load(tokenizer, hf_name=rows), tokenizer, model.score, dict)


def test_plain_rows_that_are_rendered_already_are_to_end_as_the_template_ends(tmp_path):
    tokenizer = tokenizers.chatml()
    model = HFSpinLM.from_model(tuned(tokenizer), tokenizer)
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(
        json.dumps({"prompt": f"<|im_start|>user\nQuestion {i}<|im_end|>\n<|im_start|>assistant\n",
                    "response": answer}) + "\n" for i, answer in enumerate(ANSWERS)
    ))  # fmt: skip
    with pytest.raises(InputError, match=r"stop_token: '<\|im_end\|>'\.$"):
        check_stop(load(tokenizer, hf_name=str(path)), tokenizer, model.score, dict)
    right = load(tokenizer, hf_name=str(path), stop_token="<|im_end|>")
    check_stop(right, tokenizer, model.score, dict)


@pytest.mark.parametrize("tied", [False, True])
def test_a_random_model_is_no_evidence(glm, rows, tied):
    examples = load(glm, hf_name=rows)
    earlier = examples.with_earlier_stop()
    for seed in range(4):
        model = models.tiny_model(
            "llama", vocab_size=len(glm), seed=seed, tie_word_embeddings=tied,
            initializer_range=0.2,
        )  # fmt: skip
        model = HFSpinLM.from_model(model, glm)
        for some in (examples, earlier):
            check_stop(some, glm, model.score, dict)


def test_fit_begins_with_the_check(rows, tmp_path):
    tokenizer = tokenizers.byte_level()
    tokenizer.chat_template = tokenizers.CHATML
    model = HFSpinLM.from_model(tuned(tokenizer), tokenizer)
    dataset = {"hf_name": rows, "split": "train", "max_seq_len": 64}
    loader = build_spin_dataloader(tokenizer, 4, dataset=dataset)
    trainer = runs.tiny_trainer(tmp_path, model, train_dataloader=loader)
    with pytest.raises(InputError, match="which the model does not write"):
        trainer.fit()
    trainer.close()


def test_a_stop_token_that_is_written_costs_one_forward(rows):
    tokenizer = tokenizers.chatml()
    model = HFSpinLM.from_model(tuned(tokenizer), tokenizer)
    scored = []

    def score(batch):
        scored.append(batch)
        return model.score(batch)

    examples = load(tokenizer, hf_name=rows)
    assert examples.alternative_stop_ids()
    check_stop(examples, tokenizer, score, dict)
    assert len(scored) == 1


def test_evidence_is_an_improbable_stop_in_all_rows_and_another_token_in_most():
    def preferred(*rows):
        return preferred_token(np.array(rows).reshape(len(rows), -1))

    assert preferred_token(np.zeros((0, 0))) is None
    assert preferred([-12.0, -0.1], [-9.0, -3.0], [-9.0, -3.0]) == 1
    assert preferred([-12.0, -0.1], [-7.9, -0.1]) is None  # it is written sometimes
    assert preferred([-12.0, -5.0], [-12.0, -0.1], [-12.0, -5.0]) is None  # so is the other
    assert preferred([-12.0, -9.0, -0.5]) == 2
    assert preferred([-12.0]) is None  # nothing to compare with
    assert preferred([float("nan"), -0.1]) is None


def test_rows_whose_last_token_is_an_alternative_say_nothing(glm, rows):
    examples = load(glm, hf_name=rows)
    last = {int(row.response[-2]) for row in examples}
    assert len(whole_rows(examples, [])) == 6
    assert whole_rows(examples, sorted(last)) == []


def forwards(rank: int, rows: str, folder: str) -> int:
    """Return how many forwards the check makes on a node; each has a Hugging Face cache."""
    tokenizer = templates.chatml(templates.GLM4, *templates.GLM4_ADDED)
    tokenizer.name_or_path = f"{folder}/{rank}"
    model = HFSpinLM.from_model(models.tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    scored = []

    def score(batch):
        scored.append(batch)
        return model.score(batch) - 20  # a stop token that is written would end the check

    check_stop(load(tokenizer, hf_name=rows), tokenizer, score, dict)
    return len(scored)


def test_nodes_whose_caches_differ_make_as_many_forwards(rows, tmp_path):
    (tmp_path / "0").mkdir()
    ends = {"eos_token_id": [5, 6, 7]}
    (tmp_path / "0/generation_config.json").write_text(json.dumps(ends))
    made = on_two_ranks(forwards, rows=str(rows), folder=str(tmp_path))
    assert made[0] == made[1] > forwards(1, str(rows), str(tmp_path))
