"""``spin-composer data check`` and ``data convert``: of data, and of a run's own YAML."""

from __future__ import annotations

import json
import sys

import datasets
import pytest
import yaml

from spin_composer.cli import main
from spin_composer.data.sources import read_rows
from spin_composer.settings.dataset import read_config
from tests.data import templates
from tests.fixtures import tokenizers

PLAIN = [{"prompt": "How many clips?", "response": f"{i} clips."} for i in range(4)]
USER = {"role": "user", "content": "How many clips?"}
ANSWER = {"role": "assistant", "content": "24 clips."}
CALLS = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
CALL = {"role": "assistant", "content": None, "tool_calls": CALLS}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.chatml().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Return a function that runs ``spin-composer data ...``: its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spin-composer", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def write_yaml(path, tokenizer, dataset, **more):
    config = {
        "variables": {"limit": 64},
        "tokenizer": {"name": tokenizer, "kwargs": {"padding_side": "left"}},
        "train_loader": {"name": "spin", "dataset": dataset},
        **more,
    }
    path.write_text(yaml.safe_dump(config))
    return path


def shown(out: str, name: str) -> str:
    """Return the value beside a name in the printed table."""
    line = next(line for line in out.splitlines() if name in line)
    return line.split("│")[2].strip()


def rows_of(**dataset):
    return [row for _, row in read_rows(read_config({"max_seq_len": 9, **dataset}))]


def test_a_yaml_is_checked_with_its_very_settings(command, tokenizer, tmp_path):
    rows = [{"q": "clips?", "a": "24"}, {"q": "clips? " * 40, "a": "3"}, {"q": "", "a": "4"}]
    path = write(tmp_path / "rows.jsonl", rows)
    dataset = {
        "hf_name": str(path), "split": "train", "max_seq_len": "${variables.limit}",
        "preprocessing_fn": {"prompt": "q", "response": "a"}, "on_bad_row": "skip", "shuffle": True,
    }  # fmt: skip
    run = write_yaml(tmp_path / "run.yaml", tokenizer, dataset)
    code, out, err = command("check", run)
    assert (code, err) == (0, "")
    assert (shown(out, "rows read"), shown(out, "rows kept")) == ("3", "1")
    assert shown(out, "dropped: prompt too long") == "1"
    # An override of the YAML, and an option, are as good as the file's own lines.
    _, wider, _ = command("check", run, "variables.limit=512")
    assert shown(wider, "rows kept") == "2"
    code, _, err = command("check", run, "train_loader.dataset.on_bad_row=error")
    assert code == 2
    assert "rows.jsonl:2: the prompt has" in err
    code, _, err = command("check", run, "--on-bad-row", "error", "--max-seq-len", 512)
    assert code == 2
    assert err.count("\n") == 1
    assert "rows.jsonl:3: prompt='' is empty" in err


def test_mappings_subsets_and_further_keys_are_given_on_the_command_line(
    command, tokenizer, tmp_path
):
    path = write(tmp_path / "rows.jsonl", [{"q": "clips?", "a": "24"}])
    for more in (
        ["--preprocessing-fn", "{prompt: q, response: a}"],
        ["preprocessing_fn.prompt=q", "preprocessing_fn.response=a"],
        ["train_loader.dataset.preprocessing_fn={prompt: q, response: a}"],
    ):
        code, out, err = command("check", path, "--tokenizer", tokenizer, *more)
        assert (code, err) == (0, "")
        assert shown(out, "rows kept") == "1"
    (tmp_path / "rows.json").write_text(json.dumps({"data": PLAIN}))
    code, out, _ = command(
        "check", tmp_path / "rows.json", "--tokenizer", tokenizer, "hf_kwargs.field=data"
    )
    assert shown(out, "rows kept") == "4"
    (tmp_path / "hub" / "main").mkdir(parents=True)
    (tmp_path / "hub" / "other").mkdir()
    write(tmp_path / "hub" / "main" / "train.jsonl", PLAIN[:3])
    write(tmp_path / "hub" / "other" / "train.jsonl", PLAIN[:1])
    subsets = [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in ("main", "other")]
    (tmp_path / "hub" / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': subsets})}---\n")
    for name, rows in (("main", "3"), ("other", "1")):
        _, out, _ = command("check", tmp_path / "hub", "--tokenizer", tokenizer, "--subset", name)
        assert shown(out, "rows kept") == rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "{rows}"], "the tokenizer is missing. Give --tokenizer NAME"),
        (["check", "{rows}", "--tokenizer", "{tok}", "max_seq_leng=9"], "mean 'max_seq_len'"),
        (["check", "{rows}", "--tokenizer", "{tok}", "--splitt=x"], "is not a setting"),
        (["check", "{rows}", "--tokenizer", "{tok}", "train"], "'train' is not a setting"),
        (["check", "absent.yaml"], "absent.yaml does not exist"),
        (["check", "{yaml}"], "train_loader.dataset=None names no data"),
        (["convert", "absent.jsonl", "{out}"], "absent.jsonl"),
        (["convert", "{rows}", "{out}", "--on-bad-row", "ignore"], "must be one of error, skip"),
        (["convert", "{rows}", "{out}", "--tokenizer", "./absent"], "tokenizer='./absent' cannot"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    arguments, said, command, tokenizer, tmp_path
):
    named = {
        "rows": write(tmp_path / "rows.jsonl", PLAIN), "tok": tokenizer, "out": tmp_path / "out",
        "yaml": tmp_path / "empty.yaml",
    }  # fmt: skip
    (tmp_path / "empty.yaml").write_text("train_loader: {name: spin}\n")
    code, _, err = command(*(argument.format(**named) for argument in arguments))
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_check_shows_what_stands_at_the_boundary(command, tokenizer, tmp_path):
    rows = [{"messages": [USER, {**ANSWER, "id": 7}], "source": "x"}] * 2
    _, out, _ = command("check", write(tmp_path / "rows.jsonl", rows), "--tokenizer", tokenizer)
    assert shown(out, "generation prompt") == r"'<|im_start|>assistant\n'"
    assert shown(out, "stop token") == "<|im_end|>"
    assert shown(out, "response begins with").startswith("'2' '4'")
    assert shown(out, "special tokens in prompts") == "<|im_start|> 4, <|im_end|> 2"
    assert shown(out, "special tokens in responses") == "<|im_end|> 2"
    assert shown(out, "columns not read") == "source"
    assert shown(out, "keys not read") == "a turn's id (2 times)"


def test_conversion_checks_rows_as_training_does(command, tokenizer, tmp_path):
    good = {"messages": [USER, ANSWER]}
    ends = {"messages": [USER, {**ANSWER, "content": "24<|im_end|> clips"}]}
    half = {"messages": [USER, {**ANSWER, "content": "b\ud800"}]}
    path = write(tmp_path / "rows.jsonl", [good, ends, half])
    target = tmp_path / "mds"
    run = write_yaml(tmp_path / "run.yaml", tokenizer,
                     {"hf_name": str(path), "split": "train", "max_seq_len": 256})  # fmt: skip
    code, _, err = command("convert", path, target)
    assert code == 2
    assert "rows.jsonl:3: " in err
    assert "half of a surrogate pair" in err
    code, _, err = command("convert", run, target)
    assert code == 2
    assert "rows.jsonl:2: " in err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == [
        "rows.jsonl", "run.yaml"
    ]  # fmt: skip
    # Without a tokenizer the row whose text holds the stop token cannot be told.
    code, out, _ = command("convert", path, target, "on_bad_row=skip")
    assert "2 rows written" in out
    assert rows_of(local=str(target)) == [good, ends]
    for more in (["train_loader.dataset.on_bad_row=skip"], ["--on-bad-row", "skip"]):
        target = tmp_path / f"mds{len(more)}"
        code, out, _ = command("convert", run, target, *more)
        assert (code, "1 rows written" in out, "2 bad ones left out" in out) == (0, True, True)
        assert rows_of(local=str(target)) == [good]


def test_conversion_of_plain_rows_refuses_half_a_character(command, tmp_path):
    path = write(tmp_path / "rows.jsonl", [*PLAIN, {"prompt": "a", "response": "b\udc00"}])
    code, _, err = command("convert", path, tmp_path / "mds")
    assert code == 2
    assert "rows.jsonl:5: " in err
    assert err.count("\n") == 1
    assert not (tmp_path / "mds").exists()


def test_conversion_keeps_calls_tools_and_template_options(command, tmp_path):
    rows = [
        {"messages": [USER, {**ANSWER, "reasoning_content": "Count."}]},
        {"messages": [USER, CALL, {"role": "tool", "content": "24"}, ANSWER], "tools": TOOLS},
        {"messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": False}},
    ]
    code, out, err = command("convert", write(tmp_path / "rows.jsonl", rows), tmp_path / "mds")
    assert (code, err) == (0, "")
    assert "3 rows written" in out
    read = rows_of(local=str(tmp_path / "mds"))
    assert [{k: v for k, v in row.items() if v is not None} for row in read] == rows


def test_the_check_compares_both_ways_of_tokenizing(command, tmp_path):
    folder = tmp_path / "metaspace"
    templates.metaspace("always", templates.ZEPHYR).save_pretrained(folder)
    path = write(tmp_path / "rows.jsonl", [{"messages": [USER, ANSWER]}] * 3)
    code, out, _ = command("check", path, "--tokenizer", folder)
    assert code == 0
    assert "tokenize: rendering and turns differ on 3 of 3 rows" in " ".join(out.split())


def test_the_check_counts_where_responses_begin(command, tmp_path):
    folder = tmp_path / "thinking"
    templates.chatml(templates.OPENS_THINK).save_pretrained(folder)
    thinking = {"messages": [USER, {**ANSWER, "content": "<think>\nso\n</think>\n24"}]}
    path = write(tmp_path / "rows.jsonl", [thinking, thinking, {"messages": [USER, ANSWER]}])
    given = ("check", path, "--tokenizer", folder)
    code, out, _ = command(*given, "generation_prompt=response")
    assert code == 0
    assert shown(out, "responses begin") == (
        r"after the generation prompt in 2 rows, before '<think>\n', the generation prompt's end, "
        "in 1 rows"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tokenize=turns", "tokenize is not a key of a run's YAML. Did you mean "
         "train_loader.dataset.tokenize?"),
        ("dataset.max_seq_len=100", "dataset is not a key of llm-foundry's training config."),
        ("tran_loader.dataset.tokenize=turns", "Did you mean 'train_loader'?"),
    ],
)  # fmt: skip
def test_a_key_beside_a_yaml_that_a_run_would_refuse_is_refused(
    override, said, command, tokenizer, tmp_path
):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "clips?", "response": "24"}])
    dataset = {"hf_name": str(path), "split": "train", "max_seq_len": 64}
    run = write_yaml(tmp_path / "run.yaml", tokenizer, dataset)
    code, _, errors = command("check", run, override)
    assert code == 2
    assert said in errors
