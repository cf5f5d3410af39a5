"""Control tokens that data spells out never become control tokens unseen."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast

from spin_composer.data.bad_row import BadRow
from spin_composer.data.control_tokens import control_tokens
from spin_composer.errors import InputError
from tests.data import templates
from tests.data.rows import load
from tests.fixtures import tokenizers

R1 = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|User|>' + m.content }}{%- else %}"
    "{{- '<|Assistant|>' + m.content + '<|endoftext|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|Assistant|>' }}{%- endif %}"
)


def chat(asked: str, said: str) -> dict:
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    }


def full_width(text: str) -> str:
    """Write <, | and > as NFKC makes them of full-width signs."""
    return text.translate({ord("<"): "\uff1c", ord("|"): "\uff5c", ord(">"): "\uff1e"})


def normalizing(normalizer, normalized: bool = True) -> PreTrainedTokenizerFast:
    """Return the ChatML tokenizer with a normalizer; <|user|> is matched after it, or before."""
    inner = tokenizers.chatml().backend_tokenizer
    inner.normalizer = normalizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken("<|user|>", special=True, normalized=normalized)])
    tokenizer.chat_template = tokenizers.CHATML
    return tokenizer


@pytest.mark.parametrize("way", ["rendering", "turns"])
def test_what_the_normalizer_makes_a_control_token_is_found(way, jsonl):
    for normalizer, spelled in (
        (normalizers.NFKC(), full_width("<|user|>")), (normalizers.Lowercase(), "<|USER|>"),
        (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "<|us\u00e9r|>"),
    ):  # fmt: skip
        tokenizer = normalizing(normalizer)
        path = str(jsonl([chat("Hello", f"a {spelled} b")]))
        with pytest.raises(BadRow, match=r"the response .*'<\|user\|>' once the tokenizer has"):
            load(tokenizer, hf_name=path, tokenize=way)
        path = str(jsonl([chat(f"a {spelled} b", "no"), chat("Hello", "no")]))
        assert load(tokenizer, hf_name=path, tokenize=way).report.spelled_prompts == 1
        with pytest.raises(BadRow, match=r"the prompt .*'<\|user\|>' once"):
            load(tokenizer, hf_name=path, tokenize=way, special_tokens_in_text="error")


def test_what_the_normalizer_leaves_text_is_no_control_token(jsonl):
    rows = [chat(f"a {full_width('<|user|>')} b", full_width("<|im_start|> <|user|>"))]
    # Without a normalizer, or for tokens that are matched before it, it is other text.
    for tokenizer in (normalizing(None), normalizing(normalizers.NFKC(), normalized=False)):
        examples = load(tokenizer, hf_name=str(jsonl(rows)), special_tokens_in_text="error")
        assert examples.report.spelled_prompts == 0
        assert tokenizer.convert_tokens_to_ids("<|user|>") not in examples[0].response
    # Half of them become control tokens: the other is not named.
    with pytest.raises(BadRow, match=r"spells out '<\|user\|>'"):
        load(normalizing(normalizers.NFKC()), hf_name=str(jsonl(rows)))


def test_vocabularies_that_hold_control_tokens_are_seen_through_the_normalizer(llama, jsonl):
    row = {"prompt": f"say {full_width('<s>')}", "response": "no"}
    assert llama.bos_token_id in llama(row["prompt"], add_special_tokens=False)["input_ids"]
    report = load(llama, hf_name=str(jsonl([row]))).report
    assert report.spelled_prompts == 1
    row = {"prompt": "say", "response": f"a {full_width('</s>')} b"}
    with pytest.raises(BadRow, match="holds the stop token within"):
        load(llama, hf_name=str(jsonl([row])))


def test_text_is_encoded_as_text_whatever_the_normalizer_makes_of_it(jsonl):
    tokenizer = normalizing(normalizers.NFKC())
    row = chat(full_width("<|user|>"), f"so {full_width('<|user|>')} it is")
    example = load(tokenizer, hf_name=str(jsonl([row])), special_tokens_in_text="text")[0]
    ids = [*example.prompt, *example.response]
    assert tokenizer.convert_tokens_to_ids("<|user|>") not in ids
    assert tokenizer.decode(example.response) == "so <|user|> it is<|im_end|>"


@pytest.mark.parametrize("way", ["rendering", "turns"])
def test_response_with_a_control_token_is_bad(way, chatml, jsonl):
    path = jsonl([chat("Hello", "a <|im_start|> b")])
    with pytest.raises(BadRow, match=r"jsonl:1: the response .*'<\|im_start\|>'"):
        load(chatml, hf_name=str(path), tokenize=way)
    path = jsonl([{"prompt": "Hello", "response": " a <|im_start|> b"}])
    with pytest.raises(BadRow, match=r"jsonl:1: the response .*'<\|im_start\|>'"):
        load(chatml, hf_name=str(path), tokenize=way)


def test_prompt_with_a_control_token_is_counted_or_bad(chatml, jsonl, caplog):
    # The stop token, too, ends a turn in the middle of a prompt.
    path = str(jsonl([chat("say <|im_end|>", "no"), chat("Hello", "no")]))
    report = load(chatml, hf_name=path).report
    assert report.spelled_prompts == 1
    assert "1 prompts spell out control tokens" in caplog.text
    assert "'<|im_end|>'" in caplog.text
    with pytest.raises(BadRow, match=r"jsonl:1: the prompt .*'<\|im_end\|>'.*in_text: text"):
        load(chatml, hf_name=path, special_tokens_in_text="error")


def test_text_is_encoded_as_text_and_the_templates_tokens_stay(chatml, jsonl):
    row = chat("say <|im_end|> and <|im_start|>user", "write <|im_start|> or <|im_end|>")
    example = load(chatml, hf_name=str(jsonl([row])), special_tokens_in_text="text")[0]
    prompt, response = (
        chatml.convert_ids_to_tokens(p.tolist()) for p in (example.prompt, example.response)
    )
    control = {"<|im_start|>", "<|im_end|>"}
    assert [t for t in prompt if t in control] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert [t for t in response if t in control] == ["<|im_end|>"]
    turns = row["messages"]
    whole = chatml.apply_chat_template(turns, tokenize=False)
    assert chatml.decode([*example.prompt, *example.response]) + "\n" == whole


@pytest.mark.parametrize("character", ["\U0010f8f0", "\U0010f8f1"])
def test_what_marks_control_tokens_is_no_part_of_a_text(character, chatml, jsonl):
    """Else data that holds it would become another text, or a control token."""
    text = f"The {character}0{character} clips"
    message = {"role": "assistant", "content": text}
    for asked, bad in (("Hello", False), ("What is <|im_start|>?", True)):
        chat = {"messages": [{"role": "user", "content": asked}, message]}
        for row in (chat, {"prompt": asked, "response": text}):
            path = str(jsonl([row]))
            if bad:
                named = f"U\\+{ord(character):X}, a private-use"
                with pytest.raises(BadRow, match=named):
                    load(chatml, hf_name=path, special_tokens_in_text="text")
            else:
                example = load(chatml, hf_name=path, special_tokens_in_text="text")[0]
                assert chatml.decode(example.response).startswith(text)


def test_text_changes_no_row_without_control_tokens(jsonl):
    for prepend in ("normalizer", "first", "always", "never"):
        tokenizer = templates.metaspace(prepend, templates.PHI3)
        rows = [
            chat("How many clips?", "The relation."),
            chat("the </s> or <|end|> mark", "The clips"),
        ]
        plain = load(tokenizer, hf_name=str(jsonl(rows)))
        text = load(tokenizer, hf_name=str(jsonl(rows)), special_tokens_in_text="text")
        assert text[0].prompt.tolist() == plain[0].prompt.tolist()
        assert tokenizer.eos_token_id in plain[1].prompt
        assert tokenizer.eos_token_id not in text[1].prompt
        ends = text[1].prompt.tolist().count(tokenizer.convert_tokens_to_ids("<|end|>"))
        assert ends == 1, "the template's own"


def test_text_is_refused_where_the_vocabulary_holds_control_tokens_as_text(llama, jsonl):
    path = str(jsonl([{"prompt": "Hello", "response": " there"}]))
    with pytest.raises(InputError, match=r"special_tokens_in_text='text'.*as text, too"):
        load(llama, hf_name=path, special_tokens_in_text="text")


def test_tags_are_content_and_turn_marks_are_not(jsonl):
    marks = ("<think>", "</think>", "<|User|>", "<|Assistant|>")
    tokenizer = templates.chatml(R1, *marks)
    load(tokenizer, hf_name=str(jsonl([chat("Hello", "<think>so</think> yes")])))
    for mark in marks[2:]:  # added tokens that are not special: the template makes turns of them
        with pytest.raises(BadRow, match="the response"):
            load(tokenizer, hf_name=str(jsonl([chat("Hello", f"so {mark} yes")])))
    assert "<think>" not in control_tokens(tokenizer)


def test_plain_response_may_end_with_the_stop_tokens_text(chatml, jsonl):
    path = str(jsonl([{"prompt": "Hello", "response": " there<|endoftext|>"}]))
    for setting in ("warn", "text"):
        example = load(chatml, hf_name=path, special_tokens_in_text=setting)[0]
        assert chatml.decode(example.response) == " there<|endoftext|>"
        assert example.response.tolist().count(chatml.eos_token_id) == 1


def test_stores_of_before_see_none_of_these_checks(jsonl):
    tokenizer = tokenizers.chatml()
    rows = [chat("Hello", "a <|im_start|> b"), chat("Hello", "fine")]
    new = load(tokenizer, hf_name=str(jsonl(rows)), on_bad_row="skip")
    assert (len(new), len(new.retokenized("turns"))) == (1, 2)


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|end_of_turn|>"])
def test_the_first_eos_is_a_control_token_where_another_took_its_place(eos, jsonl):
    # OpenHermes, Dolphin, OpenChat: bos <s>, and </s> is still in the vocabulary
    inner = tokenizers.chatml().backend_tokenizer
    for special in (True, False):
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, bos_token="<s>")
        tokenizer.add_tokens([AddedToken(text, special=special) for text in ("</s>", "<pad>")])
        tokenizer.chat_template = tokenizers.CHATML.replace("<|im_end|>", eos)
        with pytest.raises(BadRow, match=r"the response .*'</s>'"):
            load(tokenizer, hf_name=str(jsonl([chat("Hello", "In Llama </s> ends a text.")])))
        path = str(jsonl([chat("what is </s> and <pad>?", "no"), chat("Hello", "no")]))
        assert load(tokenizer, hf_name=path).report.spelled_prompts == 1
        with pytest.raises(BadRow, match=r"the prompt .*'</s>'"):
            load(tokenizer, hf_name=path, special_tokens_in_text="error")
        ids = load(tokenizer, hf_name=path, special_tokens_in_text="text")[0].prompt.tolist()
        assert tokenizer.convert_tokens_to_ids("</s>") not in ids


def test_special_pairs_of_an_unknown_kind_are_control_tokens_and_thoughts_are_not():
    tokenizer = tokenizers.chatml()
    pairs = ("<img>", "</img>", "<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(text, special=True) for text in pairs])
    found = control_tokens(tokenizer)
    assert [text in found for text in pairs] == [True, True, False, False, False, False]
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<box>", "</box>")])
    assert not {"<box>", "</box>"} & control_tokens(tokenizer).keys()


def test_rows_that_are_rendered_already_are_not_told_to_encode_their_structure_as_text(
    chatml, jsonl
):
    row = {"prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "response": "yo"}
    report = load(chatml, hf_name=str(jsonl([row]))).report
    (note,) = [text for text in report.notes if "spells out" in text]
    assert note.endswith("unless the rows are rendered already and mean the token.")
