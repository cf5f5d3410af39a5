"""The two data commands: conversion to MDS, and the look at a data set before a run."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from spin_composer.data import convert
from spin_composer.data.check import histogram, print_report
from spin_composer.errors import InputError
from tests.data import templates
from tests.data.datasets import check_dataset, convert_dataset
from tests.data.rows import CHAT, PLAIN, load, nemo_chat

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
}


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_converted_rows_read_the_same_here_and_in_llm_foundry(kind, jsonl, tmp_path, chatml):
    tasks = pytest.importorskip("llmfoundry.data.finetuning.tasks")
    rows = PLAIN if kind == "plain" else CHAT
    raw = rows if kind == "plain" else [nemo_chat(row) for row in rows]
    source, target = jsonl(raw), tmp_path / "out" / "mds"
    report = convert_dataset(str(source), str(target))
    assert (report.rows, report.kind, report.shards) == (len(rows), kind, 1)
    ours = load(chatml, local=str(target))
    assert ours.fingerprint == load(chatml, hf_name=str(source)).fingerprint
    theirs = tasks.StreamingFinetuningDataset(
        tokenizer=chatml, local=str(target), remote=str(target), batch_size=1
    )
    assert [theirs[i] for i in range(len(rows))] == [
        tasks.tokenize_formatted_example(row, chatml) for row in rows
    ]


def test_converted_rows_have_the_same_ids_for_every_role_and_key(jsonl, tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"b": None, "a": "\u00e9"}}}
    words = list(ROLES)
    written = (
        "{% if tools %}{{ tools | tojson }}{% endif %}" + templates.REASONING.replace(
            "{%- for m in messages %}",
            f"{{%- for m in messages %}}{{%- if m.role in {words} %}}{{{{- kind or '' }}}}"
            "{%- endif %}{{- (m.name or '') + (m.tool_call_id or '') }}",
        )
    )  # fmt: skip
    tokenizer = templates.chatml(written, "<|observation|>")
    user, end = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
    calls = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "so"}
    rows = []
    for word in words:
        before = {
            "system": [{"role": word, "content": "Be kind."}, user],
            "user": [{"role": word, "content": "Hello"}],
            "tool": [user, calls, {"role": word, "content": "sun", "name": "f",
                                   "tool_call_id": "1"}],
        }[ROLES[word]]  # fmt: skip
        rows.append({"messages": [*before, end]})
    rows += [
        {"messages": [user, calls], "tools": [call], "chat_template_kwargs": {"kind": "k"}},
        {"messages": [user, {**end, "thinking": "so"}], "functions": [call["function"]]},
        {"messages": [user, {**end, "reasoning": "so"}], "system": "Be kind."},
    ]
    source = str(jsonl(rows))
    convert_dataset(source, str(tmp_path / "mds"))
    ids = [
        [(e.prompt.tolist(), e.response.tolist()) for e in load(tokenizer, **where)]
        for where in ({"hf_name": source}, {"local": str(tmp_path / "mds")})
    ]
    assert len({str(one) for one in ids[0]}) > 8  # the words make a difference
    assert ids[0] == ids[1]


def test_conversion_leaves_all_or_nothing(jsonl, tmp_path):
    source, target = jsonl([PLAIN[0], {"prompt": "a"}]), tmp_path / "mds"
    with pytest.raises(InputError, match=r"train\.jsonl:2"):
        convert_dataset(str(source), str(target))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl"]
    report = convert_dataset(str(source), str(target), on_bad_row="skip")
    assert (report.rows, report.dropped) == (1, {"missing response": 1})
    with pytest.raises(InputError, match="exists already"):
        convert_dataset(str(source), str(target))


def test_conversion_writes_many_shards_and_compresses(jsonl, tmp_path, gpt2, monkeypatch):
    source = jsonl(PLAIN * 50)
    monkeypatch.setattr(convert, "SHARD_BYTES", 2000)
    for name, compression in (("many", None), ("zip", "zstd")):
        if compression:
            monkeypatch.undo()
        report = convert_dataset(str(source), str(tmp_path / name), compression)
        assert (report.shards > 1) == (name == "many")
        expected = load(gpt2, hf_name=str(source)).fingerprint
        assert load(gpt2, local=str(tmp_path / name)).fingerprint == expected


def test_conversion_refuses_what_it_cannot_do(jsonl, tmp_path):
    with pytest.raises(InputError, match="a chat row"):
        convert_dataset(str(jsonl([PLAIN[0], CHAT[0]])), str(tmp_path / "mds"))
    with pytest.raises(InputError, match="remote place is not supported"):
        convert_dataset(str(jsonl(PLAIN)), "s3://bucket/mds")
    with pytest.raises(InputError, match="no usable row"):
        convert_dataset(str(jsonl([""])), str(tmp_path / "mds"))


def test_conversion_names_what_cannot_be_written(jsonl, tmp_path):
    source = jsonl(PLAIN)
    for destination in (source / "mds", source / "a" / "mds"):
        with pytest.raises(
            InputError, match=r"destination=.* cannot be written \(a file is in"
        ) as error:
            convert_dataset(str(source), str(destination))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"compression='zip' is not known\. Use one of .*zstd"):
        convert_dataset(str(source), str(tmp_path / "x"), compression="zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl"]


@pytest.mark.parametrize("content", [None, ""])
def test_source_is_looked_at_before_anything_slow(content, tmp_path):
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    code = f"""
import sys
from spin_composer.data.check import inspect_config
from spin_composer.data.convert import convert_config
from spin_composer.errors import InputError
from spin_composer.settings.dataset import read_config
block = {{"hf_name": {str(tmp_path / "rows.jsonl")!r}, "max_seq_len": 8}}
for call in (inspect_config, convert_config):
    try:
        call(read_config(block), {str(tmp_path / "to")!r})
    except InputError as error:
        print(error)
print(*(name for name in ("torch", "transformers", "streaming") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, loaded = done.stdout.split("\n")[:3]
    assert "rows.jsonl" in first
    assert "rows.jsonl" in second
    assert loaded == ""


def test_conversion_shows_its_progress(jsonl, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    convert_dataset(str(jsonl(PLAIN)), str(tmp_path / "mds"))
    assert f"{len(PLAIN)} rows" in capsys.readouterr().out


@pytest.fixture
def tokenizer_folder(chatml, tmp_path):
    chatml.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def printed(report) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=120))
    return out.getvalue()


def test_check_counts_and_shows_one_example_with_its_response(jsonl, tokenizer_folder, tmp_path):
    report = check_dataset(str(jsonl(CHAT)), tokenizer_folder)
    text = printed(report)
    report.raise_for_bad_rows()
    assert report.prompt_text.endswith("<|im_start|>assistant\n")
    assert report.response_text == "24 clips.\n#### 24<|im_end|>"
    for wanted in ("rows kept", "prompt tokens", "response tokens", "<|im_end|>", "24 clips."):
        assert wanted in text
    convert_dataset(str(jsonl(CHAT)), str(tmp_path / "mds"))
    assert check_dataset(str(tmp_path / "mds"), tokenizer_folder).fingerprint == report.fingerprint


def test_check_knows_the_generation_prompt_of_a_tokenizer_without_template(jsonl, llama, tmp_path):
    llama.save_pretrained(tmp_path / "plain")
    report = check_dataset(str(jsonl(CHAT)), str(tmp_path / "plain"))
    assert report.generation_prompt == "<|im_start|>assistant\n"
    assert report.special_tokens["responses"]["</s>"] == len(CHAT)
    assert check_dataset(str(jsonl(PLAIN)), str(tmp_path / "plain")).generation_prompt is None


def test_check_marks_the_response_in_a_terminal(jsonl, tokenizer_folder):
    out = io.StringIO()
    report = check_dataset(str(jsonl(CHAT[1:])), tokenizer_folder)
    print_report(report, Console(file=out, width=120, force_terminal=True, color_system="standard"))
    assert "\x1b[1;7;32mThey are opposites.<|im_end|>" in out.getvalue()


def test_check_counts_every_bad_row_before_it_fails(jsonl, tokenizer_folder):
    rows = [PLAIN[0], {"prompt": "a"}, {"prompt": "a", "response": ""}, PLAIN[1], "{"]
    report = check_dataset(str(jsonl(rows)), tokenizer_folder, max_seq_len=25)
    assert report.rows.dropped == {"missing response": 1, "empty response": 1, "not JSON": 1}
    assert report.rows.truncated_responses == 1
    text = printed(report)
    assert "dropped: missing response" in text
    assert "train.jsonl:5" in text.replace("\n", "")
    with pytest.raises(InputError, match=r"train\.jsonl:2: .*3 bad rows in all"):
        report.raise_for_bad_rows()
    check_dataset(
        str(jsonl(rows)), tokenizer_folder, max_seq_len=25, on_bad_row="skip"
    ).raise_for_bad_rows()


def test_check_names_a_tokenizer_that_is_not_there(jsonl):
    with pytest.raises(InputError, match=r"tokenizer='\./absent' cannot be loaded"):
        check_dataset(str(jsonl(PLAIN)), "./absent")


def test_histogram_counts_every_length_once():
    import numpy as np

    lengths = np.array([3, 3, 4, 9, 20, 57])
    bins = histogram(lengths)
    assert len(bins) <= 12
    assert sum(count for _, _, count in bins) == len(lengths)
    for low, high, count in bins:
        assert count == ((lengths >= low) & (lengths <= high)).sum()
    assert histogram(np.array([7, 7])) == [(7, 7, 2)]


def test_real_data_is_checked_in_seconds(shared_data, tokenizer_folder):
    report = check_dataset(str(shared_data / "gsm8k_valid.jsonl"), tokenizer_folder)
    assert report.rows.kept == 473
    assert json.dumps(report.rows.dropped) == "{}"
