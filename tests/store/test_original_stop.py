"""A run that began when EOS ended what the template does not end goes on with the same ids."""

from __future__ import annotations

import logging

import pytest

from spin_composer.store.local import LocalStore
from spin_composer.store.original_tokenization import with_original_tokenization
from tests.data import templates
from tests.data.conftest import jsonl  # noqa: F401  pytest finds the fixture by its name
from tests.data.rows import load

ROW = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}


@pytest.fixture
def glm():
    return templates.chatml(templates.GLM4, *templates.GLM4_ADDED)


def resumed(examples, tmp_path, **trained):
    return with_original_tokenization(examples, LocalStore(tmp_path / "store"), 1, trained, False)


def test_an_earlier_versions_run_keeps_its_stop_token(glm, jsonl, tmp_path, caplog):  # noqa: F811
    today = load(glm, hf_name=str(jsonl([ROW])))
    earlier = today.with_earlier_stop()
    assert earlier is not None
    with caplog.at_level(logging.WARNING, "spin_composer"):
        found = resumed(today, tmp_path, tokenize="rendering", data=earlier.fingerprint)
    assert found.fingerprint == earlier.fingerprint
    assert found.stop_token_id == glm.eos_token_id
    assert "this run began with responses that end with EOS" in caplog.text


def test_a_run_of_today_and_other_data_keep_todays(glm, jsonl, tmp_path):  # noqa: F811
    today = load(glm, hf_name=str(jsonl([ROW])))
    for trained in (
        {}, {"tokenize": "rendering", "data": today.fingerprint},
        {"tokenize": "rendering", "data": "another"},  # refused, field by field
    ):  # fmt: skip
        assert resumed(today, tmp_path, **trained) is today


def test_a_stop_token_that_is_set_is_no_default(glm, jsonl, tmp_path):  # noqa: F811
    path = str(jsonl([ROW]))
    earlier = load(glm, hf_name=path).with_earlier_stop()
    assert earlier is not None
    given = load(glm, hf_name=path, stop_token="<|user|>")
    trained = {"tokenize": "rendering", "data": earlier.fingerprint}
    assert resumed(given, tmp_path, **trained) is given


def test_a_run_before_tokenize_was_a_setting_is_read_as_before(glm, jsonl, tmp_path):  # noqa: F811
    path = str(jsonl([ROW]))
    today, turns = load(glm, hf_name=path), load(glm, hf_name=path, tokenize="turns")
    found = resumed(today, tmp_path, data=turns.fingerprint, iteration=0)
    assert (found.fingerprint, found.tokenize) == (turns.fingerprint, "turns")
