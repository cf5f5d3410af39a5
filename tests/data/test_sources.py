"""Every source reads, and the same rows give the same examples wherever they come from."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pytest
from streaming import MDSWriter

from spin_composer.data.sources import read_rows, source_keys
from spin_composer.errors import InputError
from spin_composer.settings.dataset import read_config
from tests.data.rows import CHAT, PLAIN, load, nemo_chat

KINDS = {"plain": PLAIN, "chat": CHAT}


def write_mds(path, rows, kind="plain", **options):
    columns = {"prompt": "str", "response": "str"} if kind == "plain" else {"messages": "json"}
    with MDSWriter(out=str(path), columns=columns, hashes=["xxh64"], **options) as writer:
        for row in rows:
            writer.write(row)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", KINDS)
def test_all_sources_give_the_same_fingerprint(kind, jsonl, tmp_path, chatml):
    rows = KINDS[kind]
    file = jsonl(rows)
    table = datasets.Dataset.from_list(rows)
    (tmp_path / "folder").mkdir()
    table.to_parquet(tmp_path / "folder" / "train-00000-of-00001.parquet")
    (tmp_path / "lines" / "data").mkdir(parents=True)
    shutil.copy(file, tmp_path / "lines" / "data" / "my_train.jsonl")
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    with gzip.open(tmp_path / "packed.jsonl.gz", "wb") as packed:
        packed.write(file.read_bytes())
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "saved_dict"))
    mds = write_mds(tmp_path / "mds", rows, kind)
    write_mds(tmp_path / "mds_split" / "train", rows, kind)
    write_mds(tmp_path / "mds_zip", rows, kind, compression="zstd")
    half = {"a": {"local": str(write_mds(tmp_path / "a", rows[:1], kind))},
            "b": {"local": str(write_mds(tmp_path / "b", rows[1:], kind))}}  # fmt: skip
    sources = [
        {"hf_name": str(file)},
        {"hf_name": str(tmp_path / "packed.jsonl.gz")},
        {"hf_name": str(tmp_path / "array.json")},
        {"hf_name": str(tmp_path / "folder" / "train-00000-of-00001.parquet")},
        {"hf_name": str(tmp_path / "folder"), "split": "train"},
        {"hf_name": str(tmp_path / "lines"), "split": "train", "safe_load": True},
        {"hf_name": "json", "split": "train", "hf_kwargs": {"data_files": str(file)}},
        {"hf_name": "json", "hf_kwargs": {"data_files": {"train": [str(file)]}}},
        {"hf_name": "json", "split": "train[:100%]", "hf_kwargs": {"data_files": str(file)}},
        {"hf_name": "parquet", "split": "train",
         "hf_kwargs": {"data_files": str(tmp_path / "folder" / "*.parquet")}},
        {"hf_name": str(tmp_path / "folder"), "split": "train",
         "hf_kwargs": {"data_files": "*.parquet"}},
        {"hf_name": str(tmp_path / "saved")},
        {"hf_name": str(tmp_path / "saved_dict"), "split": "train"},
        {"local": str(mds)},
        {"local": str(mds), "remote": str(mds)},
        {"local": str(tmp_path / "copy"), "remote": str(mds)},
        {"remote": str(mds), "validate_hash": "xxh64"},
        {"local": str(tmp_path / "mds_split"), "split": "train"},
        {"local": str(tmp_path / "mds_zip")},
        {"streams": half},
    ]  # fmt: skip
    expected = load(chatml, **sources[0]).fingerprint
    for source in sources[1:]:
        assert load(chatml, **source).fingerprint == expected, source


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_remote_folder_of_files_reads_as_in_llm_foundry(jsonl, tmp_path, gpt2):
    expected = load(gpt2, hf_name=str(jsonl(PLAIN))).fingerprint
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert load(gpt2, hf_name=url, split="train").fingerprint == expected
        with pytest.raises(InputError, match=r"absent with one of the endings"):
            load(gpt2, hf_name=url, split="absent")
    finally:
        server.shutdown()
        server.server_close()


def test_csv_reads_through_datasets(tmp_path, gpt2, jsonl):
    rows = PLAIN[:2]
    lines = load(gpt2, hf_name=str(jsonl(rows, "rows.jsonl")))
    folder = tmp_path / "csv"
    folder.mkdir()
    datasets.Dataset.from_list(rows).to_csv(folder / "train.csv")
    for source in ({"hf_name": str(folder / "train.csv")},
                   {"hf_name": str(folder), "split": "train"}):  # fmt: skip
        assert load(gpt2, **source).fingerprint == lines.fingerprint


def test_bad_rows_are_named_by_number_in_every_source(tmp_path, gpt2):
    rows = [PLAIN[0], {"prompt": "a", "response": " "}]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    write_mds(tmp_path / "mds", rows)
    for source in (
        {"hf_name": str(tmp_path / "rows.parquet")},
        {"hf_name": str(tmp_path / "saved")},
        {"local": str(tmp_path / "mds")},
    ):
        with pytest.raises(InputError, match=r"row 2: response=' ' is empty"):
            load(gpt2, **source)


def test_preprocessing_functions_are_llm_foundrys(jsonl, gpt2, tmp_path):
    plain = load(gpt2, hf_name=str(jsonl(PLAIN, "plain.jsonl"))).fingerprint
    other = [{"q": row["prompt"], "a": row["response"]} for row in PLAIN]
    path = str(jsonl(other, "other.jsonl"))
    mapping = {"response": "a", "prompt": "q"}
    assert load(gpt2, hf_name=path, preprocessing_fn=mapping).fingerprint == plain
    function = "tests.data.test_sources:question_and_answer"
    assert load(gpt2, hf_name=path, preprocessing_fn=function).fingerprint == plain
    with pytest.raises(InputError, match=r"other\.jsonl:1: preprocessing_fn fails with KeyError"):
        load(gpt2, hf_name=path, preprocessing_fn={"prompt": "x", "response": "a"})
    with pytest.raises(InputError, match=r"preprocessing_fn='no\.such:thing'"):
        load(gpt2, hf_name=path, preprocessing_fn="no.such:thing")


def question_and_answer(row):
    return {"prompt": row["q"], "response": row["a"]}


def test_hub_name_that_cannot_be_reached_is_one_line(gpt2, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hf_name='no-such/set', split='train': .*Check") as error:
        load(gpt2, hf_name="no-such/set", split="train")
    assert "\n" not in str(error.value)


def test_code_of_a_data_set_is_not_trusted_unless_set(gpt2, monkeypatch):
    seen = []

    def load_dataset(path, **arguments):
        seen.append((path, arguments))
        return PLAIN

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load(gpt2, hf_name="org/set", split="train")
    load(gpt2, hf_name="org/set", split="train", hf_kwargs={"trust_remote_code": True, "name": "x"})
    assert seen == [
        ("org/set", {"split": "train", "trust_remote_code": False}),
        ("org/set", {"split": "train", "trust_remote_code": True, "name": "x"}),
    ]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({}, "names no data.*Set hf_name"),
        ({"hf_name": "a/b", "local": "x"}, "hf_name and remote/local name different data"),
        ({"hf_name": "./absent.jsonl"}, r"absent.jsonl'?: no such file"),
        ({"hf_name": "a/b"}, "split=None.*Set split: train"),
        ({"hf_nam": "a/b"}, "hf_nam is not a setting. Did you mean 'hf_name'"),
        ({"hf_name": "a", "packing_ratio": 2.5}, "packing_ratio=2.5 cannot be used: .*remove"),
        ({"hf_name": "a", "packing_ratio": "auto"}, "packing_ratio='auto'"),
        ({"hf_name": "a", "target_responses": "all"}, "target_responses='all'.*set it to last"),
        ({"hf_name": "a", "target_prompts": "length>=5"}, "target_prompts.*set it to none"),
        ({"hf_name": "a", "decoder_only_format": False}, "decoder_only_format=False.*true"),
        ({"local": "a", "epoch_size": 5}, "epoch_size=5.*remove"),
        ({"local": "a", "allow_unsafe_types": True}, "allow_unsafe_types=True.*pickled"),
        ({"local": "a", "hf_kwargs": {"name": "x"}}, "hf_kwargs.*no meaning for an MDS"),
        ({"streams": {"a": {"local": "x", "repeat": 2}}}, "streams.a.repeat=2.*Remove"),
        ({"streams": {"a": {}}}, "streams.a.*local or remote"),
        ({"local": "absent_folder"}, "absent_folder: not a readable MDS"),
        (
            {"hf_name": "a", "max_seq_len": "512"},
            "max_seq_len must be an integer >= 2, got '512'",
        ),
        ({"hf_name": "a", "max_seq_len": 1}, "max_seq_len must be an integer >= 2, got 1. Set it"),
        ({"hf_name": "a", "max_prompt_len": 600}, "max_prompt_len=600 must lie between 1 and"),
        ({"hf_name": "a", "truncate_prompt": "left"}, "set max_prompt_len so that.*e.g. half of"),
        ({"hf_name": "a", "on_bad_row": "ignore"}, "on_bad_row must be one of error, skip, got"),
        ({"hf_name": "a", "preprocessing_fn": {"prompt": "x"}}, "preprocessing_fn.*Write"),
        ({"local": "a", "stream_name": "strem"}, "stream_name='strem' is not registered"),
    ],
)
def test_settings_that_cannot_work_say_so(gpt2, dataset, message):
    with pytest.raises(InputError, match=message):
        load(gpt2, **dataset)


@pytest.mark.parametrize("source", ["file", "saved", "saved_dict"])
def test_split_of_one_file_or_saved_set_is_a_slice_or_an_error(source, jsonl, tmp_path, gpt2):
    rows = [{"prompt": f"Clip {i}", "response": f"{i}"} for i in range(200)]
    table = datasets.Dataset.from_list(rows)
    if source == "saved":
        table.save_to_disk(str(tmp_path / source))
    elif source == "saved_dict":
        datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / source))
    path = str(jsonl(rows) if source == "file" else tmp_path / source)
    for split, expected in {
        "train": rows, "train[:99%]": rows[:198], "train[99%:]": rows[198:],
        "train[10:20]": rows[10:20], "train[-3:]": rows[-3:],
        "train[5:7]+train[150:]": rows[5:7] + rows[150:],
    }.items():  # fmt: skip
        config = read_config({"max_seq_len": 64, "hf_name": path, "split": split})
        assert [row for _, row in read_rows(config)] == expected, split
    bad = {"test": "Name one" if source == "saved_dict" else "has only the split train",
           "train[:x]": "is not a slice of the 200 rows", "train[:300%]": "is not a slice",
           "train[:5]+test": "has only the split train"}  # fmt: skip
    for split, message in bad.items():
        with pytest.raises(InputError, match=message) as error:
            load(gpt2, hf_name=path, split=split)
        assert "\n" not in str(error.value)


def test_split_on_the_command_line_means_something_or_is_an_error(tmp_path):
    root = write_mds(tmp_path / "mds", PLAIN)
    write_mds(tmp_path / "mds" / "valid", PLAIN)
    assert source_keys(str(root), "train") == {"local": str(root)}
    assert source_keys(str(root), "valid") == {"local": str(root), "split": "valid"}
    assert source_keys("s3://bucket/set", "valid") == {"remote": "s3://bucket/set",
                                                       "split": "valid"}  # fmt: skip
    with pytest.raises(InputError, match=r"split='test': the MDS .*no such subfolder"):
        source_keys(str(root), "test")


def test_damaged_files_are_one_line(jsonl, tmp_path, gpt2):
    whole = gzip.compress(jsonl(PLAIN * 500).read_bytes())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for data in (whole[:-20], b"not gzip", bytes(flipped)):
        (tmp_path / "rows.jsonl.gz").write_bytes(data)
        with pytest.raises(InputError, match=r"rows\.jsonl\.gz.*") as error:
            load(gpt2, hf_name=str(tmp_path / "rows.jsonl.gz"))
        assert "\n" not in str(error.value)
    for line in ("[" * 100_000, '{"prompt": ' + "9" * 5000 + "}"):
        with pytest.raises(InputError, match=r"train\.jsonl:2: .* cannot be read as JSON"):
            load(gpt2, hf_name=str(jsonl([PLAIN[0], line])))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"deep\.json: not a JSON list"):
        load(gpt2, hf_name=str(tmp_path / "deep.json"))


def test_store_without_credentials_is_one_line(monkeypatch, gpt2):
    def get_file(*arguments, **options):
        raise PermissionError("no credentials")

    monkeypatch.setattr("composer.utils.get_file", get_file)
    with pytest.raises(InputError, match=r"train\.\w+ cannot be downloaded .*credentials"):
        load(gpt2, hf_name="s3://bucket/set", split="train")


def test_empty_file_is_named(tmp_path, gpt2):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"none of the 0 rows of .*empty\.jsonl"):
        load(gpt2, hf_name=str(tmp_path / "empty.jsonl"))


def test_preprocessing_module_in_the_working_folder_is_found(jsonl, gpt2, tmp_path, monkeypatch):
    name = "spin_test_row_function"
    (tmp_path / f"{name}.py").write_text("def upper(row):\n    return row\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    path = str(jsonl(PLAIN))
    assert len(load(gpt2, hf_name=path, preprocessing_fn=f"{name}:upper")) == len(PLAIN)


def test_long_tokenization_is_logged(jsonl, gpt2, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("spin_composer.data.row_progress._ROWS_PER_LINE", 2)
    load(gpt2, hf_name=str(jsonl(PLAIN)))
    assert "2 rows tokenized" in caplog.text
    assert "4 rows tokenized" in caplog.text


def test_missing_max_seq_len_is_named():
    with pytest.raises(InputError, match="max_seq_len"):
        read_config({"hf_name": "a"})


def test_missing_split_of_a_folder_names_those_there_are(jsonl, gpt2, tmp_path):
    jsonl(PLAIN)
    with pytest.raises(InputError, match=r"split='test'.*it has: train"):
        load(gpt2, hf_name=str(tmp_path), split="test")


def test_safe_load_refuses_scripts(jsonl, gpt2, tmp_path):
    jsonl(PLAIN)
    (tmp_path / "load.py").write_text("")
    with pytest.raises(InputError, match=r"load\.py: safe_load"):
        load(gpt2, hf_name=str(tmp_path), split="train", safe_load=True)


def test_damaged_mds_is_found(tmp_path, gpt2):
    whole = write_mds(tmp_path / "mds", PLAIN)
    shard = "shard.00000.mds"
    data = (whole / shard).read_bytes()
    flipped = bytearray(data)
    flipped[-3] ^= 1
    for damage, message in (
        (bytes(flipped), "xxh64 hash"),
        (data[:-1], "bytes where index"),
        (None, "missing"),
    ):
        (whole / shard).unlink(missing_ok=True)
        if damage is not None:
            (whole / shard).write_bytes(damage)
        with pytest.raises(InputError, match=message):
            load(gpt2, local=str(whole))


def test_pickled_columns_are_refused(tmp_path, gpt2):
    with MDSWriter(out=str(tmp_path / "mds"), columns={"prompt": "pkl"}) as writer:
        writer.write({"prompt": "a"})
    with pytest.raises(InputError, match="pickled columns are refused"):
        load(gpt2, local=str(tmp_path / "mds"))


def test_tokenized_mds_is_refused(tmp_path, gpt2):
    with MDSWriter(out=str(tmp_path / "mds"), columns={"turns": "json"}) as writer:
        writer.write({"turns": []})
    with pytest.raises(InputError, match="tokenized already"):
        load(gpt2, local=str(tmp_path / "mds"))


def test_real_rows_in_both_formats_are_the_same(shared_data, chatml, llama):
    for tokenizer in (chatml, llama):
        plain = load(tokenizer, 16384, hf_name=str(shared_data / "oasst_chat.jsonl"))
        nemo = load(tokenizer, 16384, hf_name=str(shared_data / "oasst_chat.nemo.jsonl"))
        assert len(plain) == 100
        assert plain.fingerprint == nemo.fingerprint


def test_real_plain_rows_all_read(shared_data, llama):
    assert len(load(llama, 2048, hf_name=str(shared_data / "gsm8k_train.jsonl"))) == 7000
    assert len(load(llama, 16384, hf_name=str(shared_data / "seed_tasks.nemo.jsonl"))) == 175


def test_nemo_rows_through_parquet_keep_their_meaning(tmp_path, chatml, jsonl):
    rows = [nemo_chat(row) for row in CHAT]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "nemo.parquet")
    lines = load(chatml, hf_name=str(jsonl(CHAT)))
    assert load(chatml, hf_name=str(tmp_path / "nemo.parquet")).fingerprint == lines.fingerprint
