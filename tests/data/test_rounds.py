"""The paper plays the first round of each conversation."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from spin_composer.data.preprocess import make_preprocessor
from spin_composer.data.rounds import first_round
from spin_composer.errors import InputError
from spin_composer.settings.dataset import read_config

TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
ROW = {"prompt": "a", "prompt_id": "1", "messages": TURNS}
ROOT = Path(__file__).parents[2]


def test_first_round_ends_with_the_first_answer_and_keeps_a_system_turn():
    assert first_round(ROW) == {"messages": TURNS[:2]}
    system = {"role": "system", "content": "s", "weight": 1}
    kept = first_round({"messages": [system, *TURNS]})["messages"]
    assert kept == [{"role": "system", "content": "s"}, *TURNS[:2]]


def test_a_row_without_an_answer_is_a_bad_row():
    with pytest.raises(InputError, match="no assistant turn"):
        first_round({"messages": TURNS[:1]})


@pytest.mark.parametrize("name", ["zephyr-7b-ultrachat", "llama-3.1-8b"])
@pytest.mark.parametrize("loader", ["train_loader", "eval_loader"])
def test_the_yamls_functions_take_a_row_with_the_data_sets_columns(name, loader):
    config = yaml.safe_load((ROOT / f"yamls/{name}.yaml").read_text())
    named = config[loader]["dataset"]["preprocessing_fn"]
    if named.startswith("llmfoundry."):
        pytest.importorskip("llmfoundry")
    function = make_preprocessor(
        read_config({"max_seq_len": 9, "hf_name": "org/set", "preprocessing_fn": named})
    )
    assert function is not None
    assert function(ROW)["messages"][:2] == TURNS[:2]
