"""Of a row nothing but thoughts of earlier turns is left out by its template without a word."""

from __future__ import annotations

import json

import pytest

from spin_composer.data.bad_row import BadRow
from spin_composer.errors import InputError
from tests.data import templates
from tests.data.rows import load
from tests.data.test_rendering import answer, rendered, user
from tests.fixtures import tokenizers

OSLO = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
ROME = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
RAIN = {"role": "tool", "content": "RAIN"}
HISTORY = [user("Weather?"), answer(None, tool_calls=[OSLO]), RAIN, answer("It rains.")]
WRITES_CALLS = tokenizers.CHATML.replace(
    "message['content'] +",
    "(message['content'] or '') + (message['tool_calls'] | tojson if message['tool_calls'] else '')"
    " +",
)
NULL = templates.NULL_BESIDE_CALLS


@pytest.mark.parametrize("content", [None, "", "absent"])
def test_null_content_reaches_templates_that_ask_for_it(content, jsonl):
    call = answer(content, tool_calls=[OSLO, ROME])
    if content == "absent":
        del call["content"]
    tokenizer = templates.chatml(NULL)
    written = (
        '<|answer|><|call|>weather\n{"city": "Oslo"}<|call|>weather\n{"city": "Rome"}<|im_end|>'
    )
    row = {"messages": [user("Weather?"), call, RAIN, answer("It rains.")]}
    prompt, response = rendered(tokenizer, row, jsonl, generation_prompt="response")
    assert prompt == f"<|user|>Weather?{written}<|output|>RAIN<|answer|>"
    assert response == "It rains.<|im_end|>"
    row = {"messages": [user("Weather?"), call]}
    prompt, response = rendered(tokenizer, row, jsonl, generation_prompt="response")
    assert prompt + response == "<|user|>Weather?" + written


def test_null_content_reaches_the_template_that_is_used_and_its_date(jsonl):
    dated = "{{ strftime_now('%Y') }}" + NULL
    row = {"messages": HISTORY, "tools": [TOOL]}
    for named in (dated, {"default": tokenizers.CHATML, "tool_use": dated}):
        tokenizer = templates.chatml(named)
        template = "{{ (tools or []) | tojson }}" + NULL
        tokenizer.chat_template = (
            {**named, "tool_use": dated + template[: template.index("{% for")]}
            if isinstance(named, dict) else dated + "{{ (tools or []) | tojson }}"
        )  # fmt: skip
        prompt, _ = rendered(
            tokenizer, row, jsonl, generation_prompt="response", date_string="2024-07-06"
        )
        assert prompt.startswith("2024<|user|>Weather?<|answer|><|call|>weather")


@pytest.mark.parametrize(
    ("template", "messages", "named"),
    [
        # where there is text as well, the template writes the text alone
        (NULL, [user("a"), answer("I look.", tool_calls=[OSLO]), RAIN, answer("b")], "1"),
        (NULL, [user("a"), answer("I look.", tool_calls=[OSLO])], "1"),
        (tokenizers.CHATML, HISTORY, "1"),
        # calls of the last turn only
        (WRITES_CALLS.replace("if message[", "if loop.last and message["), HISTORY, "1"),
        # the first call only
        (
            WRITES_CALLS.replace("message['tool_calls'] |", "message['tool_calls'][:1] |"),
            [user("a"), answer(None, tool_calls=[OSLO, ROME]), RAIN, answer("b")],
            r"1\]\.tool_calls\[1",
        ),
        # calls without their arguments
        (
            WRITES_CALLS.replace("'] | tojson", "'][0].function.name"),
            HISTORY,
            r"1\]\.tool_calls\.function\.arguments",
        ),
    ],
)  # fmt: skip
def test_a_call_that_the_template_leaves_out_makes_a_bad_row(template, messages, named, jsonl):
    with pytest.raises(BadRow, match=rf"messages\[{named}.*=.* is not used by the chat template"):
        rendered(templates.chatml(template), {"messages": messages}, jsonl)
    calls = {"messages": [user("a"), answer(None, tool_calls=[OSLO, ROME]), RAIN, answer("b")]}
    prompt, _ = rendered(templates.chatml(WRITES_CALLS), calls, jsonl)
    assert json.dumps([OSLO, ROME]) in prompt


def test_calls_are_looked_for_in_the_template_that_is_used(jsonl):
    tokenizer = tokenizers.chatml()
    tokenizer.chat_template = {
        "default": tokenizers.CHATML,
        "tool_use": "{{ tools | tojson }}" + WRITES_CALLS,
    }
    with pytest.raises(BadRow, match=r"tool_calls=.*'default'.*'tool_use'.*give the row its tools"):
        rendered(tokenizer, {"messages": HISTORY}, jsonl)
    prompt, _ = rendered(tokenizer, {"messages": HISTORY, "tools": [TOOL]}, jsonl)
    assert json.dumps(OSLO) in prompt


def test_a_tool_that_the_template_leaves_out_makes_a_bad_row(jsonl):
    first = templates.chatml("{{ (tools or [])[:1] | tojson }}" + tokenizers.CHATML)
    other = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    row = {"messages": [user("Hello"), answer("Hi")], "tools": [TOOL]}
    assert "weather" in rendered(first, row, jsonl)[0]
    with pytest.raises(BadRow, match=r"tools\[1\]=.*clock.* is not used"):
        rendered(first, {**row, "tools": [TOOL, other]}, jsonl)


def test_tools_are_looked_for_in_the_template_that_is_used(jsonl):
    tokenizer = tokenizers.chatml()
    row = {"messages": [user("Hello"), answer("Hi")], "tools": [TOOL]}
    silent = "{{ '<|im_start|>tools' }}" + tokenizers.CHATML  # another than the default, no more
    tokenizer.chat_template = {"default": tokenizers.CHATML, "tool_use": silent}
    with pytest.raises(BadRow, match=r"tools=.*weather.* is not used by the chat template"):
        rendered(tokenizer, row, jsonl)
    only_default = {"messages": row["messages"], "chat_template_kwargs": {"kind": "k"}}
    named = {"default": tokenizers.CHATML, "tool_use": "{{ kind }}{{ tools | tojson }}" + silent}
    tokenizer.chat_template = named
    assert "weather" in rendered(tokenizer, {**only_default, "tools": [TOOL]}, jsonl)[0]
    with pytest.raises(BadRow, match=r"chat_template_kwargs\.kind='k' is not used"):
        rendered(tokenizer, only_default, jsonl)


def test_a_call_that_only_its_own_text_quotes_is_not_written(jsonl):
    text = 'I call weather {"city": "Oslo"}'
    row = {"messages": [user("a"), answer(text, tool_calls=[OSLO]), RAIN, answer("b")]}
    with pytest.raises(BadRow, match=r"messages\[1\]\.tool_calls=.* is not used"):
        rendered(tokenizers.chatml(), row, jsonl)
    twice = {"messages": [*HISTORY[:3], *HISTORY[1:3], answer("b")]}
    first = WRITES_CALLS.replace("if message[", "if loop.index < 3 and message[")
    for writes, template in ((True, WRITES_CALLS), (False, first)):
        if writes:
            assert rendered(templates.chatml(template), twice, jsonl)[0].count('"Oslo"') == 2
            continue
        with pytest.raises(BadRow, match=r"messages\[3\]\.tool_calls=.* is not used"):
            rendered(templates.chatml(template), twice, jsonl)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_have_three_names_and_may_leave_the_history(key, read, jsonl):
    tokenizer = templates.chatml(templates.REASONING.replace("reasoning_content", read))
    row = {"messages": [user("1+1?"), answer("2", **{key: "add"}), user("2+2?"),
                        answer("4", **{key: "add two"})]}  # fmt: skip
    prompt, response = rendered(tokenizer, row, jsonl)
    assert "add" not in prompt
    assert response == "<think>\nadd two\n</think>\n\n4<|im_end|>"
    with pytest.raises(BadRow, match=rf"messages\[1\]\.{key}='add' is not used"):
        rendered(tokenizers.chatml(), row, jsonl)


def test_different_thoughts_of_one_turn_must_all_be_written(jsonl):
    tokenizer = templates.chatml(templates.REASONING)
    row = {"messages": [user("1+1?"), answer("2", reasoning_content="add", thinking="hm")]}
    with pytest.raises(BadRow, match=r"messages\[1\]\.thinking='hm' is not used"):
        rendered(tokenizer, row, jsonl)
    row["messages"][1]["thinking"] = "add"
    assert "<think>\nadd\n" in rendered(tokenizer, row, jsonl)[1]


KNOWS_TWO_ROLES = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAST_TWO = "{% set messages = messages[-2 if messages[-1].role == 'assistant' else -1:] %}"
LONG = "{% for m in messages %}{{ m.role + ': ' + m.content[:20] + '<|im_end|>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "messages", "named"),
    [
        # a result in tags is no thought
        (KNOWS_TWO_ROLES, [user("a"), answer("b"),
                           {"role": "tool", "content": "<result>RAIN</result>"}, answer("c")], "2"),
        # each text of the history stands in the last turn as well
        (LAST_TWO + tokenizers.CHATML, [user("Hi"), answer("Hi"), user("Hi Hi"), answer("c")], "0"),
        (LONG, [user("a"), answer("It is a long answer, and it has an end."), user("c"),
                answer("d")], r"1\]\.content=.*its last part"),
        (LONG.replace("[:20]", "[-20:]"), [user("a"), answer("It is a long answer with an end."),
         user("c"), answer("d")], r"1\]\.content=.*its first part"),
    ],
)  # fmt: skip
def test_a_text_of_the_history_that_is_left_out_makes_a_bad_row(template, messages, named, jsonl):
    with pytest.raises(BadRow, match=rf"messages\[{named}.* is not written by the chat template"):
        rendered(templates.chatml(template), {"messages": messages}, jsonl)
    rendered(tokenizers.chatml(), {"messages": messages}, jsonl)


def test_text_beside_an_earlier_call_may_be_left_out_and_is_told(jsonl):
    alone = tokenizers.CHATML.replace(
        "message['content'] +",
        "(message['tool_calls'] | tojson if message['tool_calls'] else message['content']) +",
    )
    row = {"messages": [user("a"), answer("I look.", tool_calls=[OSLO]), RAIN, answer("b")]}
    report = load(templates.chatml(alone), hf_name=str(jsonl([row, row]))).report
    assert report.unwritten_texts == 2
    notes = [note for note in report.notes if "beside tool_calls" in note]
    assert len(notes) == 1
    assert "jsonl:1: messages[1].content='I look.'" in notes[0]
    assert "of 2 earlier turns with calls" in report.summary()
    report = load(templates.chatml(WRITES_CALLS), hf_name=str(jsonl([row]))).report
    assert not report.unwritten_texts


QUOTES_FUNCTION = '{% if false %}{{ \'{"type": "function"}\' }}{% endif %}'


@pytest.mark.parametrize(
    "template",
    [
        # it refuses the word, or writes nothing for it
        "{% for m in messages %}{% if m.role not in ('user', 'assistant', 'tool') %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + WRITES_CALLS,
        KNOWS_TWO_ROLES.replace("'assistant')", "'assistant', 'tool')").replace(
            "m.content +", "(m.content or '') + (m.tool_calls | tojson if m.tool_calls else '') +"
        ),
    ],
)
def test_a_role_that_the_template_only_quotes_is_rendered_as_tool(template, jsonl):
    tokenizer = templates.chatml(QUOTES_FUNCTION + template)
    as_function = [*HISTORY[:2], {**RAIN, "role": "function"}, HISTORY[3]]
    made = [rendered(tokenizer, {"messages": m}, jsonl) for m in (as_function, HISTORY)]
    assert made[0] == made[1]
    assert "tool\nRAIN" in made[0][0]
    examples = load(tokenizer, hf_name=str(jsonl([{"messages": as_function}])))
    assert any("role='function' is rendered as 'tool'" in note for note in examples.report.notes)
    # where neither can be, it is the usual word's fault that is told
    own = (
        "{% if (messages | last).role == 'assistant' and messages | length > 2 "
        "and messages[2].role == 'tool' %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    )
    with pytest.raises(BadRow, match="refuses the row: ids have nine letters"):
        rendered(
            templates.chatml(QUOTES_FUNCTION + own + template), {"messages": as_function}, jsonl
        )


def test_a_generation_prompt_that_ends_within_a_token_of_the_answer(jsonl):
    tokenizer = templates.chatml(templates.ALWAYS_THINKS, "<think>", "</think>", "\n\n")
    row = {"messages": [user("1+1?"), answer("2")]}
    with pytest.raises(InputError, match=r"in 1 of 1 rows.*generation_prompt: response") as seen:
        rendered(tokenizer, row, jsonl)
    assert "tokenize: turns" in str(seen.value)
    thinks = {"messages": [user("1+1?"), answer("2", reasoning_content="add")]}
    path = str(jsonl([thinks, thinks, row]))
    with pytest.raises(
        BadRow, match=r"jsonl:3: .*Set train_loader.dataset.generation_prompt: resp"
    ):
        load(tokenizer, hf_name=path)
    examples = load(tokenizer, hf_name=path, generation_prompt="response")
    start = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>"
    assert [tokenizer.decode(e.prompt) for e in examples] == [f"{start}\n", f"{start}\n", start]
    assert tokenizer.decode(examples[0].response) == "add\n</think>\n\n2<|im_end|>"
    assert tokenizer.decode(examples[2].response) == "\n\n</think>\n\n2<|im_end|>"
    assert examples.report.response_starts == {"": 2, "\n": 1}
    # the ids are those of one tokenization of the whole
    whole = tokenizer.apply_chat_template(row["messages"], tokenize=False).rstrip("\n")
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert [*examples[2].prompt, *examples[2].response] == ids


def test_a_prompt_is_never_cut_before_its_generation_prompt(jsonl):
    tokenizer = templates.metaspace("first", templates.ENDS_IN_SPACE)
    row = {"messages": [user("Hello"), answer("The clips")]}
    for setting in ("template", "response"):
        with pytest.raises(InputError, match="tokenize: turns") as seen:
            rendered(tokenizer, row, jsonl, generation_prompt=setting)
        assert "generation_prompt: response" not in str(seen.value)


def test_thoughts_that_are_cut_out_of_the_answer_are_told_truly(jsonl):
    tokenizer = templates.chatml(NULL)
    row = {"messages": [user("1+1?"), answer("<think>\nadd\n</think>\n\n2")]}
    with pytest.raises(
        BadRow, match=r"cuts the thoughts out of the answer .*keeps the last"
    ) as seen:
        rendered(tokenizer, row, jsonl)
    assert "give answers that begin so" not in str(seen.value)
    prompt, response = rendered(tokenizer, row, jsonl, generation_prompt="response")
    assert prompt + response == "<|user|>1+1?<|answer|>\n\n2<|im_end|>"
    plain = {"messages": [user("1+1?"), answer("2")]}
    with pytest.raises(BadRow, match="give answers that begin so"):
        rendered(tokenizer, plain, jsonl)
