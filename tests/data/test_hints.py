"""What is said of rows and tokenizer together: true, with its remedy, and not where it is idle."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from transformers import AutoTokenizer

from spin_composer.data.other_ends import other_stop_tokens
from spin_composer.data.stop import stop_rule
from spin_composer.engines.hf.sampling import StopStrings
from tests.data import templates
from tests.data.rows import CHAT, load
from tests.fixtures import tokenizers

LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = LLAMA3.replace(
    "'<|eot_id|>'", "('<|eom_id|>' if m.tool_calls and builtin_tools is defined else '<|eot_id|>')"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == "
    "'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS]' + (m.tool_calls | tojson) + eos_token }}{% else %}"
    "{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
HARMONY = (
    "{% for m in messages %}{% if m.role != 'assistant' %}"
    "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% elif m.tool_calls %}"
    "{{ '<|start|>assistant to=' + m.tool_calls[0].function.name + '<|message|>' }}"
    "{{ m.tool_calls[0].function.arguments | tojson }}{{ '<|call|>' }}{% else %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
GLM4 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{# <|user|> <|assistant|> <|observation|> #}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# A call has an end of its own, of a name that nobody knows.
OWN_END = tokenizers.CHATML.replace(
    "message['content'] + '<|im_end|>'",
    "(message.tool_calls | string + '<call_done>' if message.tool_calls"
    " else message['content'] + '<|im_end|>')",
)
MARKS = {
    "LLAMA3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    "LLAMA31": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    "GEMMA": ("<start_of_turn>", "<end_of_turn>"),
    "MISTRAL": ("[INST]", "[/INST]", "[TOOL_CALLS]"),
    "HARMONY": ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>"),
    "GLM4": ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    "PHI3": ("<|user|>", "<|assistant|>", "<|end|>"),
    "OWN_END": ("<call_done>",),
    "REASONING": ("<think>", "</think>", "<tool_call>", "</tool_call>"),
}
TURNS = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}
ROW = {"prompt": "Hello", "response": " there"}


def of(name: str):
    template = globals().get(name) or getattr(templates, name)
    return templates.chatml(template, *MARKS.get(name, ()))


def ends(tokenizer) -> list[str]:
    return other_stop_tokens(tokenizer, stop_rule(tokenizer, "chat"))


def notes(tokenizer, rows, jsonl, **dataset) -> list[str]:
    return load(tokenizer, hf_name=str(jsonl(rows)), **dataset).report.notes


@pytest.mark.parametrize("name", ["LLAMA3", "GEMMA", "MISTRAL", "PHI3", "ZEPHYR", "LLAMA2",
                                  "VICUNA", "REASONING", "OPENS_THINK"])  # fmt: skip
def test_common_families_have_one_end_of_turn_and_nothing_is_said(name, jsonl):
    assert ends(of(name)) == []
    assert notes(of(name), [TURNS], jsonl, generation_prompt="response") == []


@pytest.mark.parametrize(
    ("name", "stop", "others"),
    [("LLAMA31", "<|eot_id|>", ["<|eom_id|>"]), ("HARMONY", "<|return|>", ["<|call|>"]),
     ("OWN_END", "<|im_end|>", ["<call_done>"])],
)  # fmt: skip
def test_other_ends_of_turns_are_named_with_their_remedy(name, stop, others, jsonl, caplog):
    tokenizer = of(name)
    assert ends(tokenizer) == others
    with caplog.at_level(logging.WARNING, "spin_composer"):
        (note,) = notes(tokenizer, [TURNS], jsonl)
    assert note.startswith(f"Responses end with {stop!r}.")
    assert f'unless algorithms.spin.generation.stop_strings holds it: ["{others[0]}"]' in note
    assert note in caplog.text
    asked, end = tokenizer.encode("Hello"), tokenizer.encode(others[0])
    strings = StopStrings(tokenizer, [others[0]])
    assert strings.contains(np.array([*asked, *end], dtype=np.int32))
    assert not strings.contains(np.array(asked, dtype=np.int32))


def test_the_generation_config_tells_ends_that_the_template_does_not(tmp_path):
    for name, listed, others in (
        ("GLM4", ["<|endoftext|>", "<|user|>", "<|observation|>"], ["<|observation|>"]),
        # The header of its own turn (Phi-3), and ends of documents, are none.
        ("PHI3", ["<|endoftext|>", "<|assistant|>", "<|end|>"], []),
        ("LLAMA3", ["<|endoftext|>", "<|eot_id|>"], []),
        ("LLAMA31", ["<|endoftext|>", "<|eom_id|>", "<|eot_id|>"], ["<|eom_id|>"]),
    ):
        folder = tmp_path / name
        tokenizer = of(name)
        tokenizer.save_pretrained(folder)
        ids = tokenizer.convert_tokens_to_ids(listed)
        config = folder / "generation_config.json"
        config.write_text(json.dumps({"eos_token_id": ids}))
        assert ends(AutoTokenizer.from_pretrained(folder)) == others
        for other in ('{"eos_token_id": 0}', "{}", "{"):  # one, none, and a file cut short
            config.write_text(other)
            assert ends(AutoTokenizer.from_pretrained(folder)) == (
                [] if name != "LLAMA31" else others
            )


def test_plain_rows_beside_a_chat_template_are_hinted_at_and_the_remedy_works(jsonl, chatml, gpt2):
    (note,) = notes(chatml, [ROW], jsonl)
    assert "without the tokenizer's chat template" in note
    mapping = note.rpartition("dataset.preprocessing_fn: ")[2].rstrip(".")
    made = load(chatml, hf_name=str(jsonl([ROW])), preprocessing_fn=mapping)
    assert (made.kind, made.report.notes) == ("chat", [])
    assert notes(gpt2, [ROW], jsonl) == []
    assert notes(chatml, CHAT, jsonl) == []


def test_the_remedy_of_mapped_rows_is_another(jsonl, chatml):
    row = {"q": "Hello", "a": " there", "question": "Hello", "answer": " there"}
    (note,) = notes(chatml, [row], jsonl, preprocessing_fn={"prompt": "q", "response": "a"})
    assert "module:function of yours" in note
    mapping = {"prompt": "question", "response": "answer"}
    (note,) = notes(chatml, [row], jsonl, preprocessing_fn=mapping)
    assert "mappings:as_chat." in note
    alpaca = {"instruction": "Hello", "output": " there"}
    function = "spin_composer.data.mappings:as_alpaca"
    assert notes(chatml, [alpaca], jsonl, preprocessing_fn=function) == []


@pytest.mark.parametrize("name", ["LLAMA3", "ZEPHYR", "VICUNA", "LLAMA2"])
def test_plain_rows_that_are_rendered_already_need_no_hint(name, jsonl):
    tokenizer = of(name)
    question = [{"role": "user", "content": "Hello"}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    rows = [{"prompt": prompt, "response": "there"}]
    assert not any("chat template" in note for note in notes(tokenizer, rows, jsonl))


def test_a_store_of_before_hears_no_hints(jsonl, chatml):
    examples = load(chatml, hf_name=str(jsonl([ROW])))
    assert examples.retokenized("turns").report.notes == []
