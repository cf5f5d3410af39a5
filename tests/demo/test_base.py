from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer.demo.base import ModelSize, _save_untrained
from spin_composer.demo.scoring import final_answer, same_answer, score
from spin_composer.demo.world import Row, make_world

ROWS = make_world(seed=0, num_careless=50, num_careful=1, num_valid=4).careless_train
SIZE = ModelSize(vocab_size=400, width=16, layers=1, heads=2, max_seq_len=40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    _save_untrained((row.prompt + row.response for row in ROWS), folder, SIZE, seed=3)
    return folder


def test_saved_tokenizer_and_model_fit_each_other(model: Path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = AutoModelForCausalLM.from_pretrained(model).config
    assert len(tokenizer) == config.vocab_size <= SIZE.vocab_size
    assert config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer(ROWS[0].response)["input_ids"]) == ROWS[0].response


def test_score_is_repeatable_and_counts_what_is_accepted(model: Path):
    def accept(row: Row, response: str) -> bool:
        return row is ROWS[0]  # whatever the response

    scores = [score(model, ROWS[:2], accept, samples=40, max_new_tokens=30) for _ in range(2)]
    assert scores[0] == scores[1]
    assert scores[0].responses == 80
    # an untrained model rarely ends a response, and one that is cut off counts as wrong
    assert scores[0].share_valid < 0.5
    nothing = score(model, ROWS[:2], lambda *_: False, samples=1, max_new_tokens=30)
    assert nothing.share_valid == 0.0


@pytest.mark.parametrize(
    ("response", "answer"),
    [("so 2 + 2 = 4\n#### 4", "4"), ("#### 1,200 ", "1200"), ("#### 1\n#### 2", "2"), ("4", None)],
)
def test_final_answer_is_what_stands_after_the_last_mark(response: str, answer: str | None):
    assert final_answer(response) == answer


def test_response_without_an_answer_never_matches():
    assert not same_answer(Row("p", "no answer"), "no answer")
    assert same_answer(Row("p", "x\n#### 3"), "y\n#### 3")
