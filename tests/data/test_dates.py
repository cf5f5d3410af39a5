"""A template's date is the pinned one, and nothing else of its rendering changes by that."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from spin_composer.data.chat_template import ChatTemplate
from spin_composer.errors import InputError
from tests.data import templates
from tests.fixtures.tokenizers import CHATML

TURNS = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "there"}]
DAY = datetime(2024, 7, 6)
# Spaces, newlines and blocks before anything is written, of which jinja drops some.
BEGINNINGS = ("", "\n", "\n\n", "  ", "\n  {% if true %}\nx{% endif %}", "{%- set y = 1 %}\n\n",
              "  {% if true %}\n  x{% endif %}", "{# a comment #}\n z", "text\n")  # fmt: skip
UNREACHED = "{% if false %}{{ strftime_now('%Y') }}{% endif %}"


@pytest.mark.parametrize(
    "form",
    ["%d %b %Y", "%Y-%m-%d", "%A, %B %d, %y", "%-d/%-m", "100%% of %d", "%%d", "%%%d%%", "no date",
     "%j %U %w %H:%M:%S", ""],
)  # fmt: skip
@pytest.mark.parametrize("named", ["", "format="])
def test_strftime_now_writes_as_python_does(form: str, named: str):
    call = f"{{{{ strftime_now({named}'{form}') }}}}"
    render = ChatTemplate(templates.chatml(call + CHATML), "2024-07-06")
    assert render(TURNS).split("<|im_start|>")[0] == DAY.strftime(form)


def test_what_is_written_can_be_reckoned_with():
    call = "{% set year = strftime_now('%Y') | int - 1 %}{{ year }}"
    assert ChatTemplate(templates.chatml(call + CHATML), "2024-07-06")(TURNS).startswith("2023<|")


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_the_rest_of_the_rendering_is_the_tokenizers_own(beginning: str, caplog: Any):
    tokenizer: Any = templates.chatml(beginning + UNREACHED + CHATML)
    expected = tokenizer.apply_chat_template(TURNS, tokenize=False)
    for date in (None, "2024-07-06"):
        assert ChatTemplate(tokenizer, date)(TURNS) == expected
    assert not caplog.text, "no date is printed"


def test_of_several_templates_the_one_for_tools_has_the_date_too():
    tokenizer: Any = templates.chatml("")
    dated = "{{ strftime_now('%Y') }}"
    tokenizer.chat_template = {"default": CHATML, "tool_use": dated + CHATML}
    render = ChatTemplate(tokenizer, "2024-07-06")
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert render(TURNS, tools=[tool]).startswith("2024<|im_start|>")
    assert render(TURNS).startswith("<|im_start|>")


def test_a_date_string_that_is_no_date_is_refused_where_it_would_be_printed():
    render = ChatTemplate(templates.chatml(UNREACHED + CHATML), "Christmas")
    assert render(TURNS).startswith("<|im_start|>")
    said = r"'Christmas' is not a date .* print as '%d %b %Y'\. Write"
    with pytest.raises(InputError, match=said):
        ChatTemplate(templates.chatml(templates.DATED), "Christmas")(TURNS)
