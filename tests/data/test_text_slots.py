"""Conversations put together from their parts are what the template itself renders."""

from __future__ import annotations

import random
from typing import Any

import pytest

from spin_composer.data.chat_template import DEFAULT_CHAT_TEMPLATE, ChatTemplate
from spin_composer.data.opaque_contents import writes_contents_as_they_are
from spin_composer.data.tokenizer_errors import TemplateFailure
from tests.data import templates
from tests.fixtures import tokenizers

HEAD = "<|im_start|>"
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}"
    "{%- endif %}{{- bos_token }}{%- for message in loop_messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{%- if loop.first and system_message is defined %}"
    "{{- ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}{%- else %}"
    "{{- ' [INST] ' + message['content'] + ' [/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token}}"
    "{%- else %}{{- raise_exception('Only user and assistant roles are supported') }}{%- endif %}"
    "{%- endfor %}"
)
# Qwen2.5's way with rows that have no tools.
QWEN = (
    "{%- if tools %}{{- 'TOOLS' }}{%- else %}{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{%- endif %}{%- endif %}"
    "{%- for message in messages %}"
    '{%- if (message.role == "user") or (message.role == "system" and not loop.first) or '
    '(message.role == "assistant" and not message.tool_calls) %}'
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
TAKEN = {
    "default": DEFAULT_CHAT_TEMPLATE, "ChatML": tokenizers.CHATML, "SmolLM2": SMOLLM2,
    "Llama 3": LLAMA3, "Gemma": GEMMA, "Mistral": MISTRAL, "Qwen 2.5": QWEN,
    "Llama 2": templates.LLAMA2, "Zephyr": templates.ZEPHYR, "Phi-3": templates.PHI3,
    "Vicuna": templates.VICUNA, "space": templates.ENDS_IN_SPACE, "Alpaca": templates.ALPACA,
    "opens think": templates.OPENS_THINK, "system in the last": templates.SYSTEM_LAST,
    "strip": "{% for m in messages %}{{ m.content.strip() ~ '|' ~ m['content'] }}{% endfor %}",
    "the last alone": "{{ messages[-1].content }}{% for m in messages[::-1] %}.{% endfor %}",
    "no turn": "{{ bos_token }}",
}  # fmt: skip
EACH = "{%% for m in messages %%}%s{%% endfor %%}"
# Each looks at a content, or might.
LEFT_TO_THE_TEMPLATE = {
    "reasoning": templates.REASONING,
    **{
        text: EACH % text for text in (
            "{% if m.content %}{{ m.content }}{% endif %}",
            "{% if 'a' in m.content %}{{ m.content }}{% endif %}",
            "{{ m.content if m.content != 'a' else 'b' }}", "{{ m.content or 'none' }}",
            "{{ m.content | upper }}", "{{ m.content | length }}", "{{ m.content[:3] }}",
            "{{ m.content.split('</think>')[-1] }}", "{{ (m.content + ' ') | trim }}",
            "{{ m.content | trim('a') }}", "{{ m.content * 2 }}", "{{ m | tojson }}", "{{ m }}",
            "{{ m['con' ~ 'tent'] }}", "{{ m.get('content') }}", "{{ m['values']() | first }}",
            "{% for k, v in m.items() %}{{ v }}{% endfor %}", "{{ '%s' % m.content }}",
            "{{ '{}'.format(m.content) }}", "{{ [m.content] | join }}", "{{ {'a': m.content} }}",
            "{% set ns = namespace(a='') %}{% set ns.a = m.content %}{{ ns.a | upper }}",
            "{% set a %}{{ m.content }}{% endset %}{{ a | upper }}",
            "{% filter upper %}{{ m.content }}{% endfilter %}",
            "{% macro f(x) %}{{ x | upper }}{% endmacro %}{{ f(m.content) }}",
            "{% set b = a %}{% set a = m.content %}{{ b | upper }}",
            "{{ loop.previtem.content | upper if loop.previtem is defined }}",
            "{% if loop.changed(m.content) %}.{% endif %}", "{{ loop.cycle(m.content, 'b') }}",
            "{% if m.content == messages[0].content %}.{% endif %}", "{{ m.content ~ m }}",
            "{% for c in m.content %}{{ c }}.{% endfor %}", "{% set m = m.content %}{{ m }}",
            "{{ messages | map(attribute='content') | join }}", "{{ messages }}",
            "{{ messages | selectattr('content') | list | length }}",
            "{{ raise_exception(m.content) if m.content is string }}",
            "{% generation %}{{ m.content }}{% endgeneration %}", "{{ m.content }",
            "{% with a = m.content %}{{ a }}{% endwith %}",
        )
    },
}  # fmt: skip
PIECES = (
    "", " ", "\n", "\t a", "clips", " The  relation ", "{{ messages }}", "{% raw %}", "<|im_end|>",
    "</think>x", "<think>\n\n</think>\n\nyes", "\u2005", "\u00a0b\u3000",
    "\U0010f8f30\U0010f8f3",
    "a'b\"c\\n", "\ud55c\u1161e\u0301", "None", "&lt;b>", "\x1c", "\r\n",
)  # fmt: skip
ROLES = (
    ["user"], ["user", "assistant"], ["system", "user", "assistant"], ["user", "assistant"] * 3,
    ["system", *["user", "assistant"] * 2], ["assistant", "user"], ["user", "user"],
    ["user", "assistant", "tool", "assistant"], ["user", "observation"],
)  # fmt: skip


def outcome(render: Any, *given: Any) -> str:
    try:
        return render(*given)
    except TemplateFailure as failure:
        return f"refused: {failure}"


@pytest.mark.parametrize("date", [None, "26 Jul 2024"])
@pytest.mark.parametrize("name", [*TAKEN, "dated"])
def test_what_is_put_together_is_what_the_template_renders(name, date):
    template = {**TAKEN, "dated": templates.DATED}[name]
    tokenizer = templates.chatml(template)
    tokenizer.bos_token = tokenizer.eos_token
    render = ChatTemplate(tokenizer, date, quiet=True)
    assert render._slots is not None
    draw = random.Random(name)
    for _ in range(150):
        roles = draw.choice(ROLES)
        turns = [
            {"role": role, "content": "".join(draw.choices(PIECES, k=draw.randrange(4)))}
            for role in roles
        ]  # fmt: skip
        for prompt in (True, False):
            assert outcome(render, turns, prompt) == outcome(render._rendered, turns, prompt)
    assert render._slots._may_fill
    assert render._slots._forms


@pytest.mark.parametrize("name", TAKEN)
def test_the_usual_templates_are_known(name):
    assert writes_contents_as_they_are(TAKEN[name])


@pytest.mark.parametrize("name", LEFT_TO_THE_TEMPLATE)
def test_a_template_that_may_look_at_contents_is_left_to_itself(name):
    assert not writes_contents_as_they_are(LEFT_TO_THE_TEMPLATE[name])


def test_other_turns_are_left_to_the_template():
    template = EACH % "{{ m.role + (m.name or '') + '|' + (m.content or '') }}"
    assert not writes_contents_as_they_are(template)
    render = ChatTemplate(templates.chatml(tokenizers.CHATML))
    named = [{"role": "user", "content": "a", "name": "b"}]
    for turns, more in (
        (named, {}), ([{"role": "user", "content": None}], {}),
        (named, {"arguments": {"a": 1}}), (named, {"tools": [{"name": "f"}]}),
    ):  # fmt: skip
        outcome(lambda turns=turns, more=more: render(turns, **more))
    assert render._slots is not None
    assert not render._slots._forms


def test_a_class_that_renders_chats_itself_is_asked():
    tokenizer = templates.chatml(tokenizers.CHATML)

    class Loud(type(tokenizer)):
        def apply_chat_template(self, *given: Any, **more: Any) -> Any:
            return super().apply_chat_template(*given, **more).upper()

    tokenizer.__class__ = Loud
    turns = [{"role": "user", "content": "clips"}]
    for _ in range(2):
        assert "CLIPS" in ChatTemplate(tokenizer)(turns)
