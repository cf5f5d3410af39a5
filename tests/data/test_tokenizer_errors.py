"""Errors of a template and of a tokenizer have one class each; a bug of our own has neither."""

from __future__ import annotations

import pytest

from spin_composer.data.bad_row import BadRow
from spin_composer.data.chat_template import ChatTemplate
from spin_composer.data.full_text import FullTextTokenizer
from spin_composer.data.rendering import Renderer
from spin_composer.data.tokenizer_errors import TemplateFailure, TokenizerFailure
from spin_composer.data.turn_encoder import TurnEncoder
from spin_composer.errors import InputError
from tests.data import templates
from tests.data.rows import load
from tests.fixtures import tokenizers

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
NOT_UNICODE = "\ud800"
FAILING = {
    "FilterArgumentError": "{{ {'a': 1} | dictsort(by='z') }}",
    "KeyError": "{{ '%(a)s' | format(b=1) }}",
    "LookupError": "{{ 'a'.encode('x') }}",
    "OverflowError": "{{ range(10**7) | list }}",
    "RecursionError": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "SecurityError": "{{ messages.append(1) }}",
    "TemplateError": "{{ raise_exception('no user') }}",
    "TemplateSyntaxError": "{% if %}",
    "TypeError": "{{ none + 'text' }}",
    "UndefinedError": "{{ messages[0].split('a') }}",
    "ValueError": "{{ messages[0].content.index('q') }}",
    "ZeroDivisionError": "{{ 1 // 0 }}",
}


@pytest.mark.parametrize("name", FAILING)
def test_whatever_a_template_raises_is_its_failure(name):
    with pytest.raises(TemplateFailure) as caught:
        ChatTemplate(templates.chatml(FAILING[name]))(TURNS)
    failure = caught.value
    assert failure.cause_name == name
    assert str(failure) == str(failure.__cause__)
    assert failure.is_refusal == (name == "TemplateError")
    own = str(failure) if failure.is_refusal else f"{name}: {failure}"
    assert failure.describe() == own


@pytest.mark.parametrize("way", ["rendering", "turns"])
@pytest.mark.parametrize("name", ["OverflowError", "TemplateError", "TypeError"])
def test_a_row_that_the_template_fails_on_is_a_bad_row(name, way, jsonl):
    fails = "{% if messages[0].content == 'Hi' %}" + FAILING[name] + "{% endif %}"
    template = templates.chatml(fails + tokenizers.CHATML)
    with pytest.raises(BadRow, match="jsonl:1: the chat template refuses the row: "):
        load(template, hf_name=str(jsonl([{"messages": TURNS}])), tokenize=way)


def test_a_text_that_is_not_unicode_is_the_tokenizers_failure():
    tokenizer = templates.chatml(tokenizers.CHATML)
    row = {"prompt": NOT_UNICODE, "response": "a"}
    with pytest.raises(TokenizerFailure):
        FullTextTokenizer(tokenizer, with_special=False).encode(NOT_UNICODE)
    with pytest.raises(TokenizerFailure):
        TurnEncoder(tokenizer)(row)


def test_errors_of_our_own_code_stay_what_they_are():
    renderer = Renderer(templates.chatml(tokenizers.CHATML))
    with pytest.raises(KeyError):
        renderer.text([{"content": "a turn without a role"}])


def test_a_wrong_date_is_a_wrong_setting_and_no_bad_row(jsonl):
    path = str(jsonl([{"messages": TURNS}]))
    for way in ("rendering", "turns"):
        with pytest.raises(InputError, match="date_string='Christmas' is not a date") as caught:
            load(templates.chatml(templates.DATED), hf_name=path, date_string="Christmas",
                 tokenize=way, on_bad_row="skip")  # fmt: skip
        assert not isinstance(caught.value, BadRow)
