"""Turns keep what the model is to read or write, and lose nothing silently."""

from __future__ import annotations

import json

import datasets
import pytest

from spin_composer.data.counts import DataReport
from spin_composer.data.formats import BadRow, Location, to_foundry_row
from spin_composer.data.sources import read_rows
from spin_composer.data.tool_calls import with_text_arguments
from spin_composer.settings.dataset import read_config

HERE = Location("data.jsonl", 7)
USER = {"role": "user", "content": "Weather in Paris and Rome?"}
ANSWER = {"role": "assistant", "content": "Sun in both."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def call(city: str, **more) -> dict:
    function = {"name": "weather", "arguments": {"city": city}}
    return {"type": "function", "function": function, **more}


CALLS = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [call("Paris", id="1"), call("Rome")]},
    {"role": "tool", "content": "sun", "tool_call_id": "1", "name": "weather"},
    {"role": "tool", "content": "sun"},
    ANSWER,
]


def read(row, where=HERE, report=None):
    return to_foundry_row(row, where, report)[1]


def test_calls_results_and_tools_are_kept():
    row = {"messages": CALLS, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    assert read(row) == row
    assert read({"messages": CALLS[:2]})["messages"] == CALLS[:2]  # a call is a response too


def test_other_spellings_of_calls_mean_the_same():
    texts = with_text_arguments(CALLS)
    assert texts[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
    assert "arguments" in CALLS[1]["tool_calls"][0]["function"]
    named = {"role": "assistant", "tool_calls": json.dumps([call("Paris", id="1"), call("Rome")])}
    for row in (
        {"messages": texts, "tools": json.dumps([TOOL])},
        {"messages": [USER, named, *CALLS[2:]], "tools": [json.dumps(TOOL)]},
        {"messages": json.dumps(CALLS), "functions": [TOOL["function"]]},
    ):
        assert read(row) == {"messages": CALLS, "tools": [TOOL]}
    once = [USER, {"role": "assistant", "content": None, "tool_calls": [call("Paris")]},
            {"role": "tool", "content": "sun", "name": "weather"}, ANSWER]  # fmt: skip
    older = {"name": "weather", "arguments": '{"city": "Paris"}'}
    function = {"role": "function", "content": "sun", "name": "weather"}
    calls = {"tool_calls": [older | {"id": None}]}
    for first in ({"content": None, "function_call": older}, calls):
        made = read({"messages": [USER, {"role": "assistant", **first}, function, ANSWER]})
        made["messages"][1]["tool_calls"][0].setdefault("type", "function")
        assert made == {"messages": once}
    share = [
        {"from": "human", "value": USER["content"]},
        {"from": "function_call", "value": json.dumps(older)},
        {"from": "observation", "value": "sun", "name": "weather"},
        {"from": "gpt", "value": ANSWER["content"]},
    ]
    assert read({"conversations": share, "tools": "[]"}) == {"messages": once}


@pytest.mark.parametrize("whole", [True, False], ids=["call", "function"])
def test_parameters_of_a_call_are_its_arguments(whole):
    given = {"name": "weather", "parameters": {"city": "Paris"}, "arguments": {}}
    turn = {"role": "assistant", "content": None}
    made = {"name": "weather", "arguments": {"city": "Paris"}}
    for calls in ([{"function": given}] if whole else [given], json.dumps([given])):
        read_calls = read({"messages": [USER, {**turn, "tool_calls": calls}]})["messages"][1]
        assert read_calls["tool_calls"][0]["function"] == made
    for older in (given, json.dumps(given)):
        row = {"messages": [USER, {**turn, "function_call": older}]}
        assert read(row)["messages"][1]["tool_calls"][0]["function"] == made
    share = [
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": json.dumps(given)},
    ]
    assert read({"conversations": share})["messages"][1]["tool_calls"][0]["function"] == made


@pytest.mark.parametrize("key", ["args", "input", "kwargs", "params", "result", "thought"])
@pytest.mark.parametrize("value", [{"city": "Paris"}, '{"city": "Paris"}', "Paris", 5])
def test_a_key_of_a_call_that_is_not_read_makes_a_bad_row(key, value):
    function = {"name": "weather", key: value}
    given = (
        ("tool_calls", [{"type": "function", "function": function}], r"\[0\].function"),
        ("tool_calls", [{**call("Paris"), key: value}], r"\[0\]"),
        ("tool_calls", [function], r"\[0\].function"),
        ("function_call", json.dumps(function), r"\[0\].function"),
    )
    for name, calls, at in given:
        with pytest.raises(BadRow, match=rf"messages\[1\].{name}{at}.{key}=.* would be lost"):
            read({"messages": [USER, {"role": "assistant", "content": None, name: calls}]})


def test_keys_of_a_call_that_hold_nothing_are_no_fault():
    given = {**call("Paris"), "index": 0, "args": {}, "result": "", "strict": False, "extra": None}
    made = read({"messages": [USER, {"role": "assistant", "tool_calls": [given]}]})
    assert made["messages"][1]["tool_calls"][0]["function"] == call("Paris")["function"]
    both = {"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}
    with pytest.raises(BadRow, match=r"function has both arguments=.* and parameters="):
        read({"messages": [USER, {"role": "assistant", "tool_calls": [both]}]})


def test_keys_that_carry_text_are_kept_and_others_counted():
    report = DataReport()
    turn = {**ANSWER, "reasoning_content": "Look.", "thinking": "Hm.", "id": 3, "weight": 1,
            "tool_calls": [], "refusal": None, "is_reasoning": True, "lang": "en"}  # fmt: skip
    made = read({"messages": [{**USER, "id": 2}, turn], "source": "x"}, report=report)
    assert made["messages"][1] == {**ANSWER, "reasoning_content": "Look.", "thinking": "Hm."}
    assert report.ignored == {"a turn's id": 2, "a turn's weight": 1, "a turn's is_reasoning": 1,
                              "a turn's lang": 1}  # fmt: skip
    assert report.unread_columns == {"source"}
    assert "not read: a turn's id (2 times)" in report.summary()


def test_columns_with_texts_that_are_not_read_are_noted_once():
    report = DataReport()
    turns = {"messages": [USER, ANSWER], "prompt": USER["content"], "topic": "the weather"}
    read({**turns, "system_instruction": ""}, report=report)
    assert report.notes == []  # a label, and what a turn has
    asked = {**turns, "system_instruction": "Answer in two words.", "available_tools": [TOOL]}
    for row in (asked, asked, {**asked, "persona": "You are a farmer."}):
        read(row, report=report)
    assert [note[note.index("[") : note.index("]") + 1] for note in report.notes] == [
        "['available_tools', 'system_instruction']", "['persona']",
    ]  # fmt: skip


def test_what_a_store_of_before_read_is_read_again():
    turns = [USER, {**ANSWER, "reasoning_content": "Look.", "weight": 0}]
    row = {"messages": turns, "system": "s", "tools": [TOOL], "prompt": "other"}
    assert to_foundry_row(row, HERE, legacy=True)[1] == {"messages": [USER, ANSWER]}
    nemo = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
            "system": "s", "system_prompt": "t"}  # fmt: skip
    system = to_foundry_row(nemo, HERE, legacy=True)[1]["messages"][0]
    assert system == {"role": "system", "content": "s"}
    plain = {"prompt": "a", "response": "b", "system": "s", "train": False, "Prompt": "c"}
    assert to_foundry_row(plain, HERE, legacy=True)[1] == {"prompt": "a", "response": "b"}


def test_nulls_that_arrow_fills_in_are_absent(tmp_path):
    other = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    properties = {"city": {"type": "string"}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": properties}}
    add = {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "int"}}}}
    rows = [
        {"messages": CALLS, "tools": [tool, add], "system": None},
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [other]},
                      {"role": "tool", "content": "1"}, ANSWER], "tools": [add]},
        {"messages": [USER, {**ANSWER, "reasoning_content": "Look."}], "tools": None},
    ]  # fmt: skip
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    raw = list(read_rows(read_config({"max_seq_len": 9, "hf_name": str(path)})))
    assert raw[1][1]["messages"][1]["tool_calls"][0]["function"]["arguments"]["city"] is None
    for (where, row), expected in zip(raw, rows, strict=True):
        made = read(row, where)
        assert made == {key: value for key, value in expected.items() if value is not None}
    # A null that a line of JSON holds is an argument's value.
    args = {"city": None}
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "w", "arguments": args}}]}
    made = read({"messages": [USER, turn]})
    assert made["messages"][1]["tool_calls"][0]["function"]["arguments"] == args


@pytest.mark.parametrize(
    ("names", "field"),
    [
        (("developer", "human", "model"), "messages"),
        (("System", "User", "Assistant"), "messages"),
        (("system", "human", "gpt"), "conversation"),
        (("system", "prompter", "bot"), "dialogue"),
    ],
)
def test_aliases_of_roles_and_keys_are_mapped(names, field):
    texts = ("Be brief.", "Hi", "Hello")
    roles = ("system", "user", "assistant")
    expected = [{"role": r, "content": text} for r, text in zip(roles, texts, strict=True)]
    for role_key, text_key in (("role", "content"), ("from", "value")):
        turns = [{role_key: name, text_key: text} for name, text in zip(names, texts, strict=True)]
        assert read({field: turns}) == {"messages": expected}
        assert read({field: turns[1:], "system_prompt": texts[0]}) == {"messages": expected}


def test_parts_of_a_content_are_joined_if_all_are_text():
    parts = [{"type": "text", "text": "Sun ", "image_url": None}, {"text": "in both."}]
    assert read({"messages": [USER, {**ANSWER, "content": parts}]})["messages"] == [USER, ANSWER]


# reason, turns after USER, what the message must name
BAD = [
    ("not to be trained on", [{**ANSWER, "weight": 0}], "messages[1].weight=0"),
    ("not to be trained on", [{**ANSWER, "train": False}], "messages[1].train=False"),
    ("not to be trained on", [{**ANSWER, "loss": "false"}], "messages[1].loss='false'"),
    ("not to be trained on", [{**ANSWER, "loss_mask": 0.0}], "messages[1].loss_mask=0.0"),
    ("not to be trained on", [{**ANSWER, "masked": True}], "messages[1].masked=True"),
    ("wrong type", [{**ANSWER, "content": [{"type": "image_url", "image_url": "x"}]}],
     "messages[1].content=[{'type': 'image_url'"),
    ("wrong type", [{**ANSWER, "content": {"text": "x"}}], "messages[1].content={'text': 'x'}"),
    ("wrong type", [{**ANSWER, "content": None}], "messages[1].content=None"),
    ("wrong type", [{**ANSWER, "tool_calls": [{"function": {"arguments": {}}}]}],
     "messages[1].tool_calls[0]="),
    ("wrong type", [{**ANSWER, "tool_calls": "weather(Paris)"}], "messages[1].tool_calls='weather"),
    ("wrong type", [{**ANSWER, "tool_calls": [{"name": "w", "arguments": "Paris"}]}],
     "messages[1].tool_calls[0].function.arguments='Paris'"),
    ("not JSON", [{**ANSWER, "tool_calls": [{"name": "w", "arguments": {"x": float("nan")}}]}],
     "messages[1].tool_calls[0].function.arguments={'x': nan}"),
    ("empty response", [{**ANSWER, "content": " ", "reasoning_content": "Hm."}],
     "messages[1].content=' '"),
    ("two keys for one", [{**ANSWER, "value": "Rain."}], "value='Rain.'"),
    ("roles out of order", [ANSWER, CALLS[2], {"role": "system", "content": "x"}, ANSWER],
     "messages[3].role='system' stands after 'tool'"),
    ("unknown role", [{"role": "boss", "content": "x"}], "human, gpt, model, developer"),
    ("missing content", [{"role": "tool"}, ANSWER], "messages[1]={'role': 'tool'} has no content"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "turns", "named"), BAD, ids=[bad[0] for bad in BAD])
def test_bad_turns_name_turn_key_and_remedy(reason, turns, named):
    with pytest.raises(BadRow) as caught:
        read({"messages": [USER, *turns]})
    assert caught.value.reason == reason
    assert named in str(caught.value)
    assert str(caught.value).startswith("data.jsonl:7: ")
    assert len(str(caught.value)) < 500


def test_earlier_turns_may_be_left_untrained():
    turns = [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]
    assert read({"messages": turns})["messages"] == [USER, ANSWER] * 2


@pytest.mark.parametrize(("user", "answer", "good"), [(1, 0, True), (0, 1, True), (1, 1, False),
                                                      (False, False, False)])  # fmt: skip
def test_a_mask_must_tell_the_response_from_the_prompt(user, answer, good):
    row = {"messages": [{**USER, "mask": user}, {**ANSWER, "mask": answer}]}
    if good:
        assert read(row)["messages"] == [USER, ANSWER]
    else:
        with pytest.raises(BadRow, match=r"messages\[1\]\.mask="):
            read(row)
