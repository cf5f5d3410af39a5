"""``tokenize: rendering``: the ids of models tuned on whole rows, and the templates' ways."""

from __future__ import annotations

import logging

import pytest

from spin_composer.data.bad_row import BadRow
from spin_composer.errors import InputError
from tests.data import templates
from tests.data.rows import CHAT, PLAIN, load
from tests.fixtures import tokenizers


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def answer(text: str | None, **keys) -> dict:
    return {"role": "assistant", "content": text, **keys}


TWO = {"messages": [user("How many?"), answer("The relation."), user("Hello"), answer("The clips")]}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def rendered(tokenizer, row, jsonl, **dataset) -> tuple[str, str]:
    example = load(tokenizer, hf_name=str(jsonl([row])), **dataset)[0]
    return tokenizer.decode(example.prompt), tokenizer.decode(example.response)


@pytest.mark.parametrize("prepend", ["normalizer", "first", "always", "never"])
@pytest.mark.parametrize("name", ["LLAMA2", "ZEPHYR", "PHI3", "VICUNA"])
def test_ids_are_those_of_one_tokenization_of_the_whole(name, prepend, jsonl):
    tokenizer = templates.metaspace(prepend, getattr(templates, name))
    turns = TWO["messages"]
    # As TRL does: the template's own ids, of the generation prompt and of the whole.
    prompt, whole = (
        tokenizer.apply_chat_template(some, add_generation_prompt=added, return_dict=False)
        for some, added in ((turns[:-1], True), (turns, False))
    )
    example = load(tokenizer, hf_name=str(jsonl([TWO])))[0]
    assert example.prompt.tolist() == prompt
    assert [*example.prompt, *example.response] == whole[: len(prompt) + len(example.response)]
    assert example.prompt.tolist().count(tokenizer.bos_token_id) == (name == "LLAMA2")


def test_first_token_is_the_models_own_and_not_that_of_a_new_text(jsonl):
    tokenizer = templates.metaspace("always", templates.ZEPHYR)
    path = str(jsonl([TWO]))
    first = {}
    for way in ("rendering", "turns"):
        example = load(tokenizer, hf_name=path, tokenize=way)[0]
        first[way] = tokenizer.convert_ids_to_tokens(int(example.response[0]))
    assert first == {"rendering": "The", "turns": "▁The"}
    plain = templates.metaspace("always")
    row = {"prompt": "How many?\n", "response": "The clips"}
    example = load(plain, hf_name=str(jsonl([row])))[0]
    assert plain.convert_ids_to_tokens(int(example.response[0])) == "The"


def test_template_that_ends_within_a_token_is_named_once(jsonl):
    tokenizer = templates.metaspace("first", templates.ENDS_IN_SPACE)
    path = str(jsonl([TWO, TWO, TWO]))
    with pytest.raises(InputError, match=r"in 3 of 3 rows.*chat template.*tokenize: turns") as seen:
        load(tokenizer, hf_name=path)
    assert "']', '▁'], but the whole row has" in str(seen.value)
    assert "']', '▁The'" in str(seen.value)
    with pytest.raises(InputError, match=r"none of the 3 rows.*tokenize: turns"):
        load(tokenizer, hf_name=path, on_bad_row="skip")
    assert load(tokenizer, hf_name=path, tokenize="turns")[0].response.size


def test_plain_row_that_ends_within_a_token_is_bad(jsonl):
    tokenizer = templates.metaspace("always")
    good = [{"prompt": "How many?", "response": " The clips"}] * 3
    path = str(jsonl([*good, {"prompt": "How many? ", "response": "The clips"}]))
    with pytest.raises(BadRow, match=r"jsonl:4: the prompt by itself ends in .*'▁'\]"):
        load(tokenizer, hf_name=path)
    report = load(tokenizer, hf_name=path, on_bad_row="skip").report
    assert report.dropped == {"a token spans prompt and response": 1}


def test_slow_tokenizers_are_split_by_ids(jsonl):
    slow = tokenizers.Words()
    row = {"prompt": "How many", "response": " clips in April"}
    example = load(slow, hf_name=str(jsonl([row])))[0]
    assert slow.convert_ids_to_tokens(example.prompt.tolist()) == ["[CLS]", "How", "many"]
    tokens = slow.convert_ids_to_tokens(example.response.tolist())
    assert tokens == ["clips", "in", "[UNK]", "[SEP]"]
    with pytest.raises(InputError, match=r"special_tokens_in_text='text'.*no fast tokenizer"):
        load(slow, hf_name=str(jsonl([row])), special_tokens_in_text="text")


def test_history_may_be_rewritten(jsonl):
    tokenizer = templates.chatml(templates.REASONING, "<think>", "</think>")
    thoughts = ["<think>\nfirst\n</think>\n\nOne", "<think>\nsecond\n</think>\n\nTwo"]
    row = {"messages": [user("Hi"), answer(thoughts[0]), user("More"), answer(thoughts[1])]}
    prompt, response = rendered(tokenizer, row, jsonl)
    assert "first" not in prompt
    assert prompt.endswith(
        "One<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"
    )
    assert response == thoughts[1] + "<|im_end|>"


def test_generation_prompt_that_opens_think_is_explained_and_can_be_left_out(jsonl):
    tokenizer = templates.chatml(templates.OPENS_THINK, "<think>")
    row = {"messages": [user("Hi"), answer("<them> One")]}
    with pytest.raises(
        BadRow, match=r"ends with '<think>\\n'.*generation_prompt: response"
    ) as seen:
        rendered(tokenizer, row, jsonl)
    assert "role" not in str(seen.value).replace("generation", "")
    # The answer's "<th" is not part of the prompt, though it agrees with the generation prompt's.
    for text in ("<them> One", "Two"):
        row = {"messages": [user("Hi"), answer(text)]}
        prompt, response = rendered(tokenizer, row, jsonl, generation_prompt="response")
        assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert response == text + "<|im_end|>"
    row = {"messages": [user("Hi"), answer("<think>\nwell</think>One")]}
    prompt, response = rendered(tokenizer, row, jsonl)
    assert prompt.endswith("<think>\n")
    assert response == "well</think>One<|im_end|>"


def test_prompt_that_is_rewritten_once_answered_is_never_cut(jsonl):
    tokenizer = templates.chatml(templates.SYSTEM_LAST)
    row = {"messages": [{"role": "system", "content": "Be"}, user("Hi"), answer("One")]}
    for setting in ("template", "response"):
        with pytest.raises(BadRow, match=r"changes the turns before the answer once"):
            rendered(tokenizer, row, jsonl, generation_prompt=setting)


def test_keys_that_carry_text_are_rendered_or_refused(jsonl):
    tokenizer = templates.chatml(templates.REASONING, "<think>", "</think>")
    row = {"messages": [user("Hi"), answer("One", reasoning_content="because")]}
    assert rendered(tokenizer, row, jsonl)[1].startswith("<think>\nbecause\n</think>\n\nOne")
    row = {"messages": [user("Hi"), answer(None, tool_calls=[CALL])]}
    assert '"arguments": {"a": 1}' in rendered(tokenizer, row, jsonl)[1]
    plain = tokenizers.chatml()
    for key, value in {
        "reasoning_content": "because",
        "thinking": "so",
        "tool_calls": [CALL],
    }.items():
        row = {"messages": [user("Hi"), answer("One", **{key: value})]}
        with pytest.raises(BadRow, match=rf"messages\[1\]\.{key}=.* is not used"):
            rendered(plain, row, jsonl)
        with pytest.raises(BadRow, match=rf"messages\[1\]\.{key} is not used"):
            rendered(plain, row, jsonl, tokenize="turns")
    with pytest.raises(BadRow, match=r"tools=.* is not used by the chat template"):
        rendered(plain, {**TWO, "tools": [CALL]}, jsonl)
    with_tools = templates.chatml("{{ (tools or []) | tojson }}" + tokenizers.CHATML)
    assert '"name": "add"' in rendered(with_tools, {**TWO, "tools": [CALL]}, jsonl)[0]


def test_null_content_is_not_printed(jsonl):
    prints = tokenizers.CHATML.replace(
        "message['content'] +", "(message['content'] ~ '') + (message.tool_calls | tojson) +"
    )
    row = {"messages": [user("Hi"), answer(None, tool_calls=[CALL])]}
    one = templates.chatml(prints.replace("message.tool_calls |", "(message.tool_calls or []) |"))
    assert rendered(one, row, jsonl)[1].startswith("[{")


def test_answer_that_the_template_cuts_is_counted(jsonl):
    cuts = tokenizers.CHATML.replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    row = {"messages": [user("Hi"), answer("<think>so</think>One")]}
    examples = load(templates.chatml(cuts), hf_name=str(jsonl([row])))
    assert examples.report.truncated_answers == 1
    assert "does not write the whole answer" in examples.report.notes[0]


def test_errors_of_the_template_are_whole(jsonl):
    said = "Conversation roles must alternate, " * 8 + "here."
    tokenizer = templates.chatml(
        "{% if messages[0].content == 'Hi' %}{{ raise_exception('" + said + "') }}{% endif %}"
        + tokenizers.CHATML
    )  # fmt: skip
    for way in ("rendering", "turns"):
        with pytest.raises(BadRow, match=f"jsonl:1: the chat template refuses the row: {said}"):
            rendered(tokenizer, {"messages": [user("Hi"), answer("One")]}, jsonl, tokenize=way)


@pytest.mark.parametrize("way", ["rendering", "turns"])
def test_strftime_now_is_pinned_by_date_string(way, jsonl, caplog):
    tokenizer = templates.chatml(templates.DATED)
    for date in ("26 Jul 2024", "2024-07-26"):
        prompt, _ = rendered(tokenizer, TWO, jsonl, date_string=date, tokenize=way)
        assert prompt.startswith("26 Jul 2024<|im_start|>")
    assert not caplog.text
    with pytest.raises(InputError, match=r"date_string='Christmas' is not a date"):
        rendered(tokenizer, TWO, jsonl, date_string="Christmas")
    rendered(tokenizer, TWO, jsonl, tokenize=way)
    assert caplog.text.count("prints today's date (strftime_now)") == 1


def test_where_responses_begin_is_counted_of_the_rows_that_are_kept(jsonl, caplog):
    caplog.set_level(logging.INFO)
    tokenizer = templates.chatml(templates.OPENS_THINK)
    thinks = {"messages": [user("Hello"), answer("<think>\nso\n</think>\nHi")]}
    plain = {"messages": [user("Hello"), answer("Hi")]}
    long = {"messages": [user("Hello " * 99), answer("Hi")]}
    for rows, counts, level in (
        ([thinks, plain, plain], {"": 1, "<think>\n": 2}, logging.WARNING),
        ([plain, long], {"<think>\n": 1}, logging.WARNING),
        ([plain], {"<think>\n": 1}, logging.INFO),
    ):
        caplog.clear()
        report = load(tokenizer, 128, hf_name=str(jsonl(rows)), generation_prompt="response",
                      on_bad_row="skip").report  # fmt: skip
        assert report.response_starts == counts
        line = next(r for r in caplog.records if "responses begin before" in r.message)
        assert line.levelno == level
    assert load(tokenizer, hf_name=str(jsonl([thinks]))).report.response_start_summary() == ""


def test_a_date_string_that_is_not_given_is_the_templates_own(jsonl, caplog):
    own = "{% if date_string is not defined %}{% set date_string = 'long ago' %}{% endif %}"
    tokenizer = templates.chatml(own + "{{ date_string }}" + tokenizers.CHATML)
    assert rendered(tokenizer, TWO, jsonl)[0].startswith("long ago<|im_start|>")
    assert "date_string" not in caplog.text


def test_the_other_way_comes_from_the_same_source(llama, jsonl):
    path = str(jsonl([*PLAIN, *PLAIN]))
    rendering = load(llama, hf_name=path)
    turns = load(llama, hf_name=path, tokenize="turns")
    assert (rendering.tokenize, turns.tokenize) == ("rendering", "turns")
    assert rendering.retokenized("rendering") is rendering
    assert rendering.retokenized("turns").fingerprint == turns.fingerprint
    assert turns.retokenized("rendering").fingerprint == rendering.fingerprint
    for limit, count in ((3, 3), (64, 8), (None, 8)):
        ways = list(rendering.tokenized_both_ways(limit))
        assert len(ways) == count
        for i, way in enumerate(ways):
            assert way.rendering.response.tolist() == rendering[i].response.tolist()
            assert way.turns.response.tolist() == turns[i].response.tolist()
            assert way.differ == (way.rendering.response.tolist() != way.turns.response.tolist())
        assert any(way.differ for way in ways)


@pytest.mark.parametrize("bad_at", [None, 0, 2])
def test_examples_are_compared_with_the_turns_of_their_own_rows(llama, jsonl, bad_at):
    rows = [*PLAIN, *PLAIN]
    if bad_at is not None:
        rows.insert(bad_at, {"prompt": "clips " * 99, "response": "long"})
    made = load(llama, hf_name=str(jsonl(rows)), max_seq_len=64, on_bad_row="skip")
    ways = list(made.tokenized_both_ways(limit=None))
    assert [isinstance(way.rendering, BadRow) for way in ways] == [
        i == bad_at for i in range(len(rows))
    ]
    kept = [way for way in ways if not isinstance(way.rendering, BadRow)]
    for way, example in zip(kept, made, strict=True):
        assert way.rendering.prompt.tolist() == example.prompt.tolist()
        assert way.rendering.response.tolist() == example.response.tolist()
        assert way.turns.prompt.tolist() == example.prompt.tolist()


@pytest.mark.parametrize("key", ["generation_prompt", "special_tokens_in_text"])
def test_turns_cannot_do_what_only_a_rendering_can(key, jsonl, chatml):
    value = "response" if key == "generation_prompt" else "text"
    with pytest.raises(InputError, match=f"{key}='{value}' needs tokenize: rendering"):
        load(chatml, hf_name=str(jsonl(CHAT)), tokenize="turns", **{key: value})
