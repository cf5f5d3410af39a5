"""What others' templates do: turns left out, roles of their own, tags and ends of turns."""

from __future__ import annotations

import logging

import pytest

from spin_composer.data.bad_row import BadRow
from tests.data import templates
from tests.data.rows import load
from tests.data.test_rendering import answer, rendered, user
from tests.fixtures import tokenizers

KNOWS_TWO_ROLES = (
    "{% for m in messages %}{% if m.role == 'user' or m.role == 'assistant' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Answer in French only."}
RAIN = [
    user("Weather?"), answer("I look."), {"role": "tool", "content": "RAIN"}, answer("It rains."),
]  # fmt: skip


@pytest.mark.parametrize("way", ["rendering", "turns"])
@pytest.mark.parametrize(
    ("messages", "named"),
    [
        (RAIN, r"messages\[2\]\.content='RAIN', of role tool, is not written"),
        ([SYSTEM, user("Hello"), answer("Bonjour")], r"messages\[0\]\.content='Answer in French"),
        # its text stands elsewhere by chance, which hides nothing
        ([user("RAIN"), *RAIN[1:]], r"messages\[2\]\.content='RAIN'"),
    ],
)
def test_a_turn_that_the_template_leaves_out_makes_a_bad_row(messages, named, way, jsonl):
    tokenizer = templates.chatml(KNOWS_TWO_ROLES)
    with pytest.raises(BadRow, match=named):
        load(tokenizer, hf_name=str(jsonl([{"messages": messages}])), tokenize=way)
    tokenizer = tokenizers.chatml()  # it writes any role
    load(tokenizer, hf_name=str(jsonl([{"messages": messages}])), tokenize=way)


def test_thoughts_that_are_dropped_from_earlier_turns_are_no_loss(jsonl):
    tokenizer = templates.chatml(templates.REASONING, "<think>", "</think>")
    row = {"messages": [
        user("Hello"), answer("<think>so</think>"), user("And?"), answer("The clips"),
    ]}  # fmt: skip
    assert rendered(tokenizer, row, jsonl)[1] == "<think>\n\n</think>\n\nThe clips<|im_end|>"


@pytest.mark.parametrize("token", ["<|fim_prefix|>", "<\uff5ctool\u2581sep\uff5c>", "[TOOL_CALLS]"])
def test_control_tokens_need_no_mark_to_be_found(token, jsonl):
    tokenizer = templates.chatml(tokenizers.CHATML, token)
    row = {"messages": [user("Hello"), answer(f"Use {token} here")]}
    with pytest.raises(BadRow, match=r"the response .* spells out"):
        load(tokenizer, hf_name=str(jsonl([row])))
    text = load(tokenizer, hf_name=str(jsonl([row])), special_tokens_in_text="text")[0]
    assert tokenizer.convert_tokens_to_ids(token) not in text.response
    assert tokenizer.decode(text.response) == f"Use {token} here<|im_end|>"


def test_a_role_that_the_template_has_a_word_for_keeps_it(jsonl):
    messages = [user("Weather?"), answer("I look."),
                {"role": "observation", "content": "RAIN"}, answer("It rains.")]  # fmt: skip
    verbatim = tokenizers.CHATML
    for template, added, spelled in (
        (verbatim, (), "tool"),  # it prints any word, and knows none
        (verbatim, ("<|observation|>",), "observation"),
        ("{% if 'observation' %}{% endif %}" + verbatim, (), "observation"),
    ):  # fmt: skip
        tokenizer = templates.chatml(template, *added)
        prompt, _ = rendered(tokenizer, {"messages": messages}, jsonl)
        assert spelled in prompt
        assert ("observation" in prompt) == (spelled == "observation")


def test_a_role_that_is_rendered_as_another_is_noted(jsonl):
    messages = [{"role": "developer", "content": "Be kind."}, user("Hello"), answer("Hi")]
    examples = load(tokenizers.chatml(), hf_name=str(jsonl([{"messages": messages}])))
    assert any("role='developer' is rendered as 'system'" in n for n in examples.report.notes)


def test_arguments_are_json_where_the_template_prints_them_bare(jsonl):
    template = tokenizers.CHATML.replace(
        "message['content'] + '<|im_end|>' + '\n' }}",
        "(message['content'] or '') }}{% for c in message['tool_calls'] or [] %}"
        "{{ c.function.name + ' ' }}{{ c.function.arguments }}{% endfor %}"
        "{{ '<|im_end|>' + '\n' }}",
    )
    assert "c.function" in template
    call = {"type": "function", "function": {
        "name": "get", "arguments": '{"city": "Paris", "ok": true}'}}  # fmt: skip
    row = {"messages": [user("Weather?"), answer(None, tool_calls=[call])]}
    response = rendered(templates.chatml(template), row, jsonl)[1]
    assert response == 'get {"city": "Paris", "ok": true}<|im_end|>'


def test_a_closing_tag_is_no_end_of_turn(jsonl):
    template = tokenizers.CHATML.replace(
        "message['content']",
        "('<answer>' + message['content'] + '</answer>'"
        " if message['role'] == 'assistant' else message['content'])",
    )
    tokenizer = templates.chatml(template, "<answer>", "</answer>")
    row = {"messages": [user("Hello"), answer("The answer is 42.")]}
    assert rendered(tokenizer, row, jsonl)[1] == "<answer>The answer is 42.</answer><|im_end|>"


@pytest.mark.parametrize("label", [False, "False", 0])
@pytest.mark.parametrize("key", ["completion", "response"])
def test_an_undesired_answer_is_a_bad_row(label, key, jsonl, chatml):
    row = {"prompt": "Hello", key: " there", "label": label}
    with pytest.raises(BadRow, match=r"label=.* marks the answer as one that the model should not"):
        load(chatml, hf_name=str(jsonl([row])))
    load(chatml, hf_name=str(jsonl([{**row, "label": True}])))


@pytest.mark.parametrize("key", ["label", "kto_tag"])
def test_an_undesired_answer_is_one_in_every_format_and_through_mappings(key, jsonl):
    asked, said = user("Hello"), answer("there")
    whole = [asked, said]
    shapes = [
        ({"messages": whole}, None), ({"conversation": whole}, None), ({"real": whole}, None),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, None),
        ({"prompt": [asked], "completion": [said]}, None),
        ({"prompt": [asked], "chosen": [said], "rejected": [answer("no")]}, None),
        ({"prompt": "Hello", "completion": "there"}, "as_chat"),
        ({"prompt": "Hello", "completion": "there"}, "as_alpaca"),
    ]  # fmt: skip
    tokenizer = tokenizers.chatml()
    for row, mapping in shapes:
        more = {"preprocessing_fn": f"spin_composer.data.mappings:{mapping}"} if mapping else {}
        path = str(jsonl([{**row, key: True}, {**row, key: False}]))
        with pytest.raises(BadRow, match=f"jsonl:2: {key}=False marks the answer"):
            load(tokenizer, hf_name=path, **more)
        assert load(tokenizer, hf_name=path, on_bad_row="skip", **more).report.dropped == {
            "undesired completion": 1
        }


def test_a_label_beside_input_and_output_is_a_class(jsonl, chatml):
    classes = [({"input": "Hello", "output": "there", "label": 0}, {}),
               ({"instruction": "Hello", "output": "there", "label": 0},
                {"preprocessing_fn": "spin_composer.data.mappings:as_chat"})]  # fmt: skip
    for row, more in classes:
        assert len(load(chatml, hf_name=str(jsonl([row])), **more)) == 1


def test_a_store_of_before_keeps_its_undesired_answers(jsonl, chatml):
    turns = [user("Hello"), answer("there")]
    rows = [{"messages": turns, "label": label} for label in (True, False)]
    examples = load(chatml, hf_name=str(jsonl(rows)), on_bad_row="skip")
    assert (len(examples), len(examples.retokenized("turns"))) == (1, 2)


def test_an_answer_that_is_cut_is_counted_though_the_prompt_quotes_it(jsonl):
    template = tokenizers.CHATML.replace(
        "message['content']",
        "(message['content'].split('###')[0] if message['role'] == 'assistant'"
        " else message['content'])",
    )
    row = {"messages": [user("Repeat: a ### b"), answer("a ### b")]}
    examples = load(templates.chatml(template), hf_name=str(jsonl([row])))
    assert examples.report.truncated_answers == 1


def test_a_template_that_demands_a_system_turn_is_probed_with_one(jsonl):
    demand = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('first must be system') }}"
        "{% endif %}" + tokenizers.CHATML
    )
    row = {"messages": [SYSTEM, user("Hello"), answer("Bonjour")]}
    assert rendered(templates.chatml(demand), row, jsonl)[1] == "Bonjour<|im_end|>"


def test_a_template_without_a_generation_prompt_is_warned_of(jsonl, caplog):
    template = tokenizers.CHATML.replace("add_generation_prompt", "false")
    row = {"messages": [user("Hello"), answer("Hi")]}
    with caplog.at_level(logging.WARNING, "spin_composer"):
        load(templates.chatml(template), hf_name=str(jsonl([row])))
    assert "no generation prompt" in caplog.text
    caplog.clear()
    load(tokenizers.chatml(), hf_name=str(jsonl([row])))
    load(templates.metaspace("first", templates.LLAMA2), hf_name=str(jsonl([row])))
    assert "no generation prompt" not in caplog.text


def test_an_answer_with_another_end_is_told_truly(jsonl):
    template = tokenizers.CHATML.replace(
        "'<|im_end|>'", "('<|call|>' if message['tool_calls'] else '<|im_end|>')"
    ).replace("message['content'] +", "(message['content'] or message['tool_calls'] | tojson) +")
    tokenizer = templates.chatml(template, "<|call|>")
    call = {"type": "function", "function": {"name": "get", "arguments": {"a": 1}}}
    row = {"messages": [user("Weather?"), answer(None, tool_calls=[call])]}
    with pytest.raises(BadRow, match=r"one stop token per data set.*on_bad_row: skip"):
        load(tokenizer, hf_name=str(jsonl([row])))


def test_of_an_earlier_call_a_template_may_write_the_call_alone(jsonl):
    template = tokenizers.CHATML.replace(
        "message['content'] +",
        "(message['tool_calls'] | tojson if message['tool_calls'] else message['content']) +",
    )
    call = {"type": "function", "function": {"name": "get", "arguments": {"a": 1}}}
    row = {"messages": [
        user("Weather?"), answer("I look.", tool_calls=[call]),
        {"role": "tool", "content": "RAIN"}, answer("It rains."),
    ]}  # fmt: skip
    prompt, response = rendered(templates.chatml(template), row, jsonl)
    assert "I look." not in prompt
    assert '"get"' in prompt
    assert response == "It rains.<|im_end|>"
