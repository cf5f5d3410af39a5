"""The contract "Example": one rendering, BOS once, one stop token, honest truncation."""

from __future__ import annotations

import numpy as np
import pytest

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.stop import stop_rule, stop_token_id
from spin_composer.errors import InputError
from tests.data.rows import CHAT, PLAIN, load

KINDS = {"plain": PLAIN, "chat": CHAT}


def foundry_ids(path, tokenizer) -> list[tuple[list[int], list[int]]]:
    """Return what llm-foundry's own finetuning loader trains on: prompt and response ids."""
    finetuning = pytest.importorskip("llmfoundry.data.finetuning")

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    spec = finetuning.build_finetuning_dataloader(
        tokenizer=tokenizer, device_batch_size=1, num_workers=0, drop_last=False,
        pin_memory=False, prefetch_factor=None, persistent_workers=False,
        dataset={
            "hf_name": "json", "split": "train", "hf_kwargs": {"data_files": str(path)},
            "max_seq_len": 512, "decoder_only_format": True, "shuffle": False,
            "allow_pad_trimming": True,
        },
    )  # fmt: skip
    rows = []
    for batch in spec.dataloader:
        real = batch["attention_mask"][0].bool()
        ids, labels = batch["input_ids"][0][real], batch["labels"][0][real]
        is_prompt = labels == -100
        rows.append((ids[is_prompt].tolist(), ids[~is_prompt].tolist()))
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_turns_are_the_ids_of_llm_foundry(any_tokenizer, kind, jsonl, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = jsonl(KINDS[kind])
    ours = load(any_tokenizer, hf_name=str(path), tokenize="turns")
    theirs = foundry_ids(path, any_tokenizer)
    assert len(ours) == len(theirs)
    rule = stop_rule(any_tokenizer, kind)
    for example, (prompt, response) in zip(ours, theirs, strict=True):
        assert example.prompt.tolist() == prompt
        cut = response[: response.index(rule.token_id) + 1]
        assert example.response.tolist() == cut
        if rule.per_response == 0:
            assert cut == response, "without an end-of-turn token nothing is cut"


@pytest.mark.parametrize("kind", KINDS)
def test_response_ends_with_the_one_stop_token(any_tokenizer, kind, jsonl):
    examples = load(any_tokenizer, hf_name=str(jsonl(KINDS[kind])))
    assert examples.stop_token_id == stop_token_id(any_tokenizer, kind)
    for example in examples:
        assert not example.truncated
        assert example.response[-1] == examples.stop_token_id
        assert np.count_nonzero(example.response == examples.stop_token_id) == 1
        assert example.prompt.dtype == example.response.dtype == np.int32


def test_stop_token_is_end_of_turn_for_chat_and_eos_otherwise(chatml, gpt2):
    assert stop_token_id(chatml, "chat") == chatml.convert_tokens_to_ids("<|im_end|>")
    assert stop_token_id(chatml, "plain") == chatml.eos_token_id
    assert stop_token_id(gpt2, "chat") == gpt2.eos_token_id


def test_prompt_decodes_to_the_template_up_to_the_answer(chatml, jsonl):
    example = load(chatml, hf_name=str(jsonl(CHAT)))[0]
    turns = CHAT[0]["messages"]
    rendered = chatml.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert chatml.decode(example.prompt) == rendered
    assert chatml.decode(example.response) == turns[-1]["content"] + "<|im_end|>"


@pytest.mark.parametrize(
    ("after", "stop", "kept"),
    [
        ("eos_token + '\n'", "<|endoftext|>", ""),
        ("'<|im_end|>' + eos_token", "<|im_end|>", ""),
        ("' ' + eos_token", "<|endoftext|>", " "),
        ("''", "<|im_start|>", ""),
        ("'\n'", "<|im_start|>", "\n"),
    ],
)
def test_template_tail_is_cut_after_its_first_stop_token(chatml, jsonl, after, stop, kept):
    from tests.fixtures.tokenizers import CHATML
    from tests.fixtures.tokenizers import chatml as make

    tokenizer = make()
    tokenizer.chat_template = CHATML.replace("'<|im_end|>' + '\n'", after)
    example = load(tokenizer, hf_name=str(jsonl(CHAT[1:])))[0]
    assert tokenizer.decode(example.response) == "They are opposites." + kept + stop


def test_bos_stands_once_and_only_where_the_tokenizer_puts_it(llama, gpt2, jsonl):
    rows = [*PLAIN, {"prompt": "<s>Hello", "response": "there"}]
    for example in load(llama, hf_name=str(jsonl(rows))):
        ids = [*example.prompt, *example.response]
        assert ids[0] == llama.bos_token_id
        assert ids.count(llama.bos_token_id) == 1
    first = load(gpt2, hf_name=str(jsonl(PLAIN)))[0]
    assert first.prompt.tolist() == gpt2(PLAIN[0]["prompt"])["input_ids"]


def test_bos_of_a_chat_template_stands_once(llama, jsonl):
    from tests.fixtures.tokenizers import CHATML, sentencepiece_like

    tokenizer = sentencepiece_like()
    tokenizer.chat_template = "{{ bos_token }}" + CHATML.replace("'<|im_end|>'", "eos_token")
    examples = load(tokenizer, hf_name=str(jsonl(CHAT)))
    for example in examples:
        assert example.prompt[0] == tokenizer.bos_token_id
        assert np.count_nonzero(example.prompt == tokenizer.bos_token_id) == 1
    assert examples.stop_token_id == tokenizer.eos_token_id
    assert np.count_nonzero(examples[0].prompt == tokenizer.eos_token_id) == 4  # earlier turns


def test_fallback_template_is_named_in_the_log(gpt2, jsonl, caplog):
    load(gpt2, hf_name=str(jsonl(CHAT)))
    assert "has no chat template" in caplog.text


def test_eos_is_not_doubled_when_the_tokenizer_puts_it_itself(jsonl, caplog):
    from tokenizers import processors

    from tests.fixtures.tokenizers import sentencepiece_like

    tokenizer = sentencepiece_like()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    example = load(tokenizer, hf_name=str(jsonl(PLAIN)))[0]
    assert tokenizer.eos_token_id not in example.prompt
    example = load(tokenizer, hf_name=str(jsonl(PLAIN)), tokenize="turns")[0]
    assert example.response[-1] == tokenizer.eos_token_id
    assert np.count_nonzero(example.response == tokenizer.eos_token_id) == 1
    assert "ends every text with EOS" in caplog.text


def test_truncated_response_has_no_stop_token(any_tokenizer, jsonl):
    path = str(jsonl(PLAIN[:1]))
    full = load(any_tokenizer, hf_name=path)[0]
    total = len(full.prompt) + len(full.response)
    assert not load(any_tokenizer, max_seq_len=total, hf_name=path)[0].truncated
    # One token short: it is the stop token that goes.
    cut = load(any_tokenizer, max_seq_len=total - 1, hf_name=path)
    assert cut[0].truncated
    assert cut[0].response.tolist() == full.response[:-1].tolist()
    assert cut.stop_token_id not in cut[0].response
    assert cut.report.truncated_responses == 1


def test_long_prompt_is_cut_from_the_left_and_keeps_its_bos(llama, gpt2, jsonl):
    path = str(jsonl(PLAIN[:1]))
    for tokenizer, num_bos in ((llama, 1), (gpt2, 0)):
        full = load(tokenizer, hf_name=path)[0].prompt.tolist()
        cut = load(tokenizer, hf_name=path, max_prompt_len=6, truncate_prompt="left")
        assert cut[0].prompt.tolist() == full[:num_bos] + full[-(6 - num_bos) :]
        assert cut.report.truncated_prompts == 1


def test_stop_token_within_the_response_is_a_bad_row(chatml, gpt2, jsonl):
    turns = [CHAT[1]["messages"][0], {"role": "assistant", "content": "They are<|im_end|> not."}]
    with pytest.raises(InputError, match=r"train\.jsonl:1: .*stop token within.*<\|im_end\|>"):
        load(chatml, hf_name=str(jsonl([{"messages": turns}])))
    rows = [{"prompt": "Hello", "response": "there<|endoftext|>you"}]
    with pytest.raises(InputError, match="stop token within"):
        load(gpt2, hf_name=str(jsonl(rows)))
    rows = [{"prompt": "Hello", "response": "there<|endoftext|>"}]
    assert load(gpt2, hf_name=str(jsonl(rows)))[0].response[-1] == gpt2.eos_token_id


def test_tokenizer_without_any_stop_token_is_refused(jsonl):
    from tests.fixtures.tokenizers import byte_level

    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"eos_token=None.*Set tokenizer"):
        load(tokenizer, hf_name=str(jsonl(PLAIN)))


def test_template_that_prints_the_date_can_be_pinned(jsonl, caplog):
    from tests.fixtures.tokenizers import CHATML
    from tests.fixtures.tokenizers import chatml as make

    tokenizer = make()
    tokenizer.chat_template = "{{ date_string }}" + CHATML
    path = str(jsonl(CHAT))
    pinned = load(tokenizer, hf_name=path, date_string="26 Jul 2024")
    assert tokenizer.decode(pinned[0].prompt).startswith("26 Jul 2024<|im_start|>")
    load(tokenizer, hf_name=path)
    assert "date_string" in caplog.text


def test_examples_survive_the_flat_storage():
    rows = [
        Example(np.array([5, 6], np.int32), np.array([7, 2], np.int32), False),
        Example(np.array([8], np.int32), np.array([9, 9, 9], np.int32), True),
    ]
    examples = ExampleDataset.from_examples(rows, stop_token_id=2)
    assert len(examples) == 2
    for before, after in zip(rows, examples, strict=True):
        assert before.prompt.tolist() == after.prompt.tolist()
        assert before.response.tolist() == after.response.tolist()
        assert before.truncated == after.truncated
    assert examples[-1].response.tolist() == [9, 9, 9]
    assert examples.max_prompt_tokens == 2
    assert examples.lengths.tolist() == [[2, 2], [1, 3]]
    with pytest.raises(IndexError):
        examples[2]
    with pytest.raises(InputError):
        ExampleDataset.from_examples([], 2)


def test_fingerprint_sees_every_id_and_boundary():
    def fingerprint(*parts):
        rows = [Example(np.array(p, np.int32), np.array(r, np.int32), False) for p, r in parts]
        return ExampleDataset.from_examples(rows, 2).fingerprint

    same = fingerprint(([1, 3], [4, 2]))
    assert same == fingerprint(([1, 3], [4, 2]))
    assert len({same, fingerprint(([1], [3, 4, 2])), fingerprint(([1, 5], [4, 2])),
                fingerprint(([1, 3], [4, 2]), ([1, 3], [4, 2]))}) == 4  # fmt: skip
