"""Which token ends a response: one that the text of whole conversations has after an answer."""

from __future__ import annotations

import json
import logging

import pytest

from spin_composer.data.bad_row import BadRow
from spin_composer.data.check import make_report
from spin_composer.data.other_ends import alternative_stop_ids
from spin_composer.data.stop import StopRule, stop_rule
from spin_composer.errors import InputError
from tests.data import templates
from tests.data.rows import load
from tests.data.test_hints import of
from tests.data.test_rendering import answer, user
from tests.fixtures import tokenizers

TWO = {"messages": [user("Hello"), answer("Hi"), user("How many?"), answer("24 clips")]}
ROW = {"messages": TWO["messages"][:2]}
CALL = {"type": "function", "function": {"name": "get", "arguments": {"city": "Oslo"}}}


def made(name: str):
    if name in ("CHATML_AS_TEXT", "ALPACA"):  # a tokenizer to which nobody added ChatML's tokens
        tokenizer = tokenizers.byte_level()
        tokenizer.chat_template = tokenizers.CHATML if name != "ALPACA" else templates.ALPACA
        return tokenizer
    added = {"GLM4": templates.GLM4_ADDED, "GLM4_0414": templates.GLM4_ADDED,
             "NEMOTRON": templates.NEMOTRON_ADDED}  # fmt: skip
    return templates.chatml(getattr(templates, name), *added[name])


def stops(tokenizer, jsonl, row, **dataset) -> tuple[str, str]:
    """Return the stop token and the response with what is around it."""
    examples = load(tokenizer, hf_name=str(jsonl([row])), **dataset)
    stop = tokenizer.convert_ids_to_tokens(examples.stop_token_id)
    assert examples[0].response[-1] == examples.stop_token_id
    return stop, tokenizer.decode(examples[0].response)


@pytest.mark.parametrize(
    ("name", "stop", "response"),
    [
        ("GLM4", "<|user|>", "24 clips<|user|>"),
        ("GLM4_0414", "<|user|>", "24 clips<|user|>"),
        ("NEMOTRON", "<extra_id_1>", "24 clips\n<extra_id_1>"),
    ],
)
def test_what_begins_the_next_turn_ends_an_answer_as_in_a_whole_conversation(
    name, stop, response, jsonl
):
    tokenizer = made(name)
    assert stops(tokenizer, jsonl, TWO) == (stop, response)
    # The ids are those that an SFT text has there, be it of the last answer or of an earlier one.
    first = load(tokenizer, hf_name=str(jsonl([ROW])))[0]
    text = tokenizer.apply_chat_template(TWO["messages"], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    both = [*first.prompt.tolist(), *first.response.tolist()]
    assert ids[: len(both)] == both
    assert tokenizer.eos_token_id not in ids


@pytest.mark.parametrize(
    ("name", "stop"),
    [("LLAMA3", "<|eot_id|>"), ("GEMMA", "<end_of_turn>"), ("PHI3", "<|end|>"),
     ("ZEPHYR", "<|endoftext|>"), ("LLAMA2", "<|endoftext|>"), ("VICUNA", "<|endoftext|>"),
     ("MISTRAL", "<|endoftext|>"), ("HARMONY", "<|return|>"), ("REASONING", "<|im_end|>")],
)  # fmt: skip
def test_templates_with_an_end_of_turn_keep_it(name, stop):
    rule = stop_rule(of(name), "chat")
    assert rule == StopRule(of(name).convert_tokens_to_ids(stop), 1)
    assert rule == stop_rule(of(name), "chat", next_turn=False)


def test_an_end_that_only_earlier_answers_have_is_the_end(jsonl):
    template = tokenizers.CHATML.replace(
        "'<|im_end|>' + '\n'", "('' if loop.last else '<|im_end|>' + '\n')"
    )
    tokenizer = templates.chatml(template)
    row = {"messages": [user("Hello"), answer("Hi")]}
    with pytest.raises(BadRow):  # a prompt that ends otherwise is another matter
        load(tokenizer, hf_name=str(jsonl([row])))
    rule = stop_rule(tokenizer, "chat")
    assert rule == StopRule(tokenizer.convert_tokens_to_ids("<|im_end|>"), 1, "<|im_end|>")


@pytest.mark.parametrize("name", ["CHATML_AS_TEXT", "ALPACA"])
def test_a_stop_token_that_the_template_never_writes_is_warned_of(name, jsonl, caplog):
    tokenizer = made(name)
    with caplog.at_level(logging.WARNING, "spin_composer"):
        examples = load(tokenizer, hf_name=str(jsonl([TWO])))
    assert stop_rule(tokenizer, "chat") == StopRule(tokenizer.eos_token_id, 0)
    assert "Responses end with '<|endoftext|>', which the chat template never writes" in caplog.text
    assert "train_loader.dataset.stop_token" in caplog.text
    assert make_report(examples, tokenizer, "rows").stop_token_source == (
        "put at the end; the chat template never writes it"
    )
    caplog.clear()
    # llm-foundry puts EOS after a row's last answer; and whoever says so has said so.
    for more in ({"tokenize": "turns"}, {"stop_token": "<|endoftext|>"}):
        load(tokenizer, hf_name=str(jsonl([TWO])), **more)
    assert "never writes" not in caplog.text


def test_the_check_says_where_the_stop_token_comes_from(jsonl, chatml):
    for tokenizer, more, source in (
        (chatml, {}, "written by the chat template"),
        (made("GLM4"), {}, "begins the next turn; the chat template writes no end of an answer"),
        (made("GLM4"), {"stop_token": "<|endoftext|>"}, "put at the end, by stop_token"),
        (chatml, {"stop_token": "<|im_end|>"}, "written by the chat template, by stop_token"),
    ):
        examples = load(tokenizer, hf_name=str(jsonl([TWO])), **more)
        assert make_report(examples, tokenizer, "rows").stop_token_source == source


@pytest.mark.parametrize("way", ["rendering", "turns"])
def test_a_stop_token_given_by_hand_is_the_one(way, jsonl):
    glm = made("GLM4")
    for name, stop, response in (
        ("GLM4", "<|endoftext|>", "24 clips<|endoftext|>"),
        ("GLM4", "<|user|>", "24 clips<|user|>"),
        ("ALPACA", "#", "24 clips\n\n#"),
    ):
        found = stops(made(name), jsonl, TWO, stop_token=stop, tokenize=way)
        assert found == (stop, response)
    # In the template's tail, before its own end of turn.
    template = tokenizers.CHATML.replace("'<|im_end|>'", "'<done><|im_end|>'")
    tokenizer = templates.chatml(template, "<done>")
    assert stops(tokenizer, jsonl, TWO, stop_token="<done>", tokenize=way)[1] == "24 clips<done>"
    assert stops(tokenizer, jsonl, TWO, stop_token="<|im_end|>", tokenize=way)[1] == (
        "24 clips<done><|im_end|>"
    )
    plain = {"prompt": "Hello", "response": " there"}
    assert stops(glm, jsonl, plain, stop_token="<|user|>", tokenize=way)[1] == " there<|user|>"
    assert stops(glm, jsonl, plain, tokenize=way)[1] == " there<|endoftext|>"


@pytest.mark.parametrize("given", ["<|im_ende|>", "two words", "<nowhere>"])
def test_a_stop_token_must_be_one_token(given, jsonl, chatml):
    with pytest.raises(InputError, match=r"dataset.stop_token='.*' is not a token of"):
        load(chatml, hf_name=str(jsonl([TWO])), stop_token=given)


def test_llm_foundrys_turns_end_with_eos_as_it_ends_them(jsonl):
    stop, response = stops(made("GLM4"), jsonl, TWO, tokenize="turns")
    assert (stop, response) == ("<|endoftext|>", "24 clips<|endoftext|>")


@pytest.mark.parametrize("name", ["GLM4", "GLM4_0414"])
def test_a_call_that_ends_otherwise_than_answers_is_a_bad_row(name, jsonl):
    row = {"messages": [user("Weather?"), answer("", tool_calls=[CALL])]}
    path = str(jsonl([ROW, row]))
    with pytest.raises(BadRow, match=r"jsonl:2: after the call .* not '<\|user\|>'.*on_bad_row"):
        load(made(name), hf_name=path)
    examples = load(made(name), hf_name=path, on_bad_row="skip")
    assert examples.report.dropped == {"no stop token": 1}


def test_the_next_turns_mark_in_a_text_is_no_end(jsonl):
    tokenizer = made("GLM4")
    row = {"messages": [user("What is <|user|>?"), answer("It is <|user|>, a mark")]}
    with pytest.raises(BadRow, match="stop token within"):
        load(tokenizer, hf_name=str(jsonl([row])))
    examples = load(tokenizer, hf_name=str(jsonl([row])), special_tokens_in_text="text")
    assert examples[0].response[-1] == examples.stop_token_id
    assert (examples[0].response == examples.stop_token_id).sum() == 1
    assert tokenizer.decode(examples[0].response) == "It is <|user|>, a mark<|user|>"


def test_white_space_after_a_spelled_stop_token_is_none_of_the_response(jsonl, gpt2):
    for end in ("<|endoftext|>", "<|endoftext|>\n", " \n"):
        row = {"prompt": "Hello", "response": f" there{end}"}
        response = load(gpt2, hf_name=str(jsonl([row])))[0].response
        body = " there" if "<" in end else " there \n"
        assert gpt2.decode(response) == f"{body}<|endoftext|>"
    text = {"prompt": "Say <|endoftext|>", "response": " yo<|endoftext|>\n"}
    examples = load(gpt2, hf_name=str(jsonl([text])), special_tokens_in_text="text")
    assert gpt2.decode(examples[0].response) == " yo<|endoftext|>"
    assert len(examples[0].response) == len(gpt2.encode(" yo")) + 1


def test_a_run_of_an_earlier_version_can_have_its_ends_again(jsonl, chatml):
    tokenizer = made("NEMOTRON")
    examples = load(tokenizer, hf_name=str(jsonl([TWO])))
    earlier = examples.with_earlier_stop()
    assert tokenizer.decode(earlier[0].response) == "24 clips\n<|endoftext|>"
    assert earlier.with_earlier_stop() is None
    for other, more in ((tokenizer, {"stop_token": "<|endoftext|>"}), (chatml, {})):
        assert load(other, hf_name=str(jsonl([TWO])), **more).with_earlier_stop() is None


def test_what_may_stand_in_the_stop_tokens_place(tmp_path, jsonl):
    def alternatives(tokenizer, kind="chat", **given):
        rule = stop_rule(tokenizer, kind, **given)
        return tokenizer.convert_ids_to_tokens(alternative_stop_ids(tokenizer, rule, kind))

    assert alternatives(made("GLM4")) == ["<|endoftext|>"]
    assert alternatives(made("GLM4"), stop_token="<|endoftext|>") == ["<|user|>"]
    assert alternatives(made("ALPACA"))[0].startswith("#")
    assert alternatives(of("ZEPHYR")) == []
    assert alternatives(tokenizers.chatml()) == ["<|endoftext|>"]
    assert alternatives(tokenizers.chatml(), "plain") == ["<|im_end|>"]
    tokenizer = made("GLM4")
    tokenizer.save_pretrained(tmp_path)
    observation = tokenizer.convert_tokens_to_ids("<|observation|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [observation]}))
    from transformers import AutoTokenizer

    there = AutoTokenizer.from_pretrained(tmp_path)
    assert alternatives(there) == ["<|endoftext|>", "<|observation|>"]
