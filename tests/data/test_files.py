"""Local files of every ending are read alike, and what is wrong with one is said in one line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from spin_composer.data.bad_row import BadRow
from spin_composer.data.files import read_file
from spin_composer.data.sources import read_rows
from spin_composer.errors import InputError
from spin_composer.settings.dataset import read_config
from tests.data.rows import CHAT, PLAIN

LINES = ("\n".join(json.dumps(row, ensure_ascii=False) for row in PLAIN) + "\n").encode()


def rows_of(path: Path) -> list:
    return [row for _, row in read_file(path)]


def packed(data: bytes, ending: str) -> bytes:
    if ending.endswith(".gz"):
        return gzip.compress(data)
    return pyarrow.compress(data, codec="zstd", asbytes=True) if ending.endswith(".zst") else data


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", "list.json"])
def test_every_ending_gives_the_same_rows(kind, end, tmp_path):
    path = tmp_path / f"rows{kind}{end}"
    if kind == "list.json":
        data = json.dumps(PLAIN, indent=1).encode()
    elif kind in (".csv", ".tsv"):
        with (tmp_path / "table").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["prompt", "response"],
                                   delimiter="\t" if kind == ".tsv" else ",")  # fmt: skip
            table.writeheader()
            table.writerows(PLAIN)
        data = (tmp_path / "table").read_bytes()
    else:
        data = LINES
    path.write_bytes(packed(data, end))
    assert rows_of(path) == PLAIN
    config = read_config({"max_seq_len": 9, "hf_name": str(path), "split": "train[1:]"})
    assert [row for _, row in read_rows(config)] == PLAIN[1:]


def test_marks_and_line_ends_of_other_systems_are_no_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + LINES.replace(b"\n", b"\r\n\r\n"))
    assert rows_of(path) == PLAIN
    table = tmp_path / "rows.csv"
    table.write_bytes('\ufeffprompt,response\r\n\r\n"a, ""b""\r\nc",NA\r\n7,007\r\n'.encode())
    assert list(read_file(table)) != []
    places = [(where.number, row) for where, row in read_file(table)]
    assert places == [(3, {"prompt": 'a, "b"\r\nc', "response": "NA"}),
                      (5, {"prompt": "7", "response": "007"})]  # fmt: skip


def test_many_frames_and_long_lines_are_read(tmp_path):
    long = {"prompt": "a" * 3_000_000, "response": "b"}
    path = tmp_path / "rows.jsonl.zst"
    frames = [pyarrow.compress(json.dumps(row).encode() + b"\n", codec="zstd", asbytes=True)
              for row in (long, PLAIN[0])]  # fmt: skip
    path.write_bytes(b"".join(frames))
    assert rows_of(path) == [long, PLAIN[0]]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", gzip.compress(LINES), r"content is that of a \.gz file\. Name it so"),
        ("a.jsonl.gz", LINES, r"not a readable \.gz file .*begins with"),
        ("a.jsonl.zst", LINES, r"not a readable \.zst file"),
        ("a.jsonl.zst", gzip.compress(LINES), r"content is that of a \.gz file"),
        ("a.jsonl.gz", gzip.compress(LINES * 99)[:-20], r"not readable after line"),
        ("a.jsonl.zst", packed(LINES * 99, ".zst")[:-20], r"not readable after line"),
        ("a.parquet", LINES, r"not a readable \.parquet file"),
        ("a.jsonl", b"PK\x03\x04zip", r"that of a \.zip file\. Unpack it"),
        ("a.jsonl.xz", b"x", r"ending in '\.xz' is not known\. Use \.jsonl, .*\.zst"),
        ("a.json", json.dumps({"version": 1, "data": PLAIN}).encode(),
         r"one object with the fields \['data', 'version'\].*hf_kwargs: \{field: data\}"),
        ("a.json", json.dumps({"rows": PLAIN}, indent=2).encode(), r"hf_kwargs: \{field: rows\}"),
        ("a.json", json.dumps({"prompt": "a", "response": "b"}, indent=2).encode(),
         r"one object with the fields .*Write one object per line"),
        ("a.json", b"[1,", r"not a JSON list"),
        ("a.json", b'[{"prompt": "a", "prompt": "b", "response": "c"}]', r"'prompt' appears twice"),
        ("a.csv", b"prompt,prompt\na,b\n", r"a\.csv:1: the header .* a name twice"),
        ("a.csv", b'prompt,response\na,"b\n', r"not a table after line 2"),
        ("a.csv", b"prompt,response\na,\xff\n", r"not UTF-8 text"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_one_line(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        rows_of(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"prompt": "a", "response": "b",}\n', r"a\.jsonl:1: .* is not JSON"),
        ("a.jsonl", b'\n{"prompt": "a", "response": "b", "prompt": "c"}\n',
         r"a\.jsonl:2: the field 'prompt' appears twice"),
        ("a.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), r"a\.jsonl:1: .* not UTF-8"),
        ("a.csv", b"prompt,response\na,b,c\n", r"a\.csv:2: the row has 3 cells where the header"),
    ],
)  # fmt: skip
def test_a_bad_row_is_counted_by_its_line(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    _, row = next(read_file(tmp_path / name))
    assert isinstance(row, BadRow)
    with pytest.raises(BadRow, match=said):
        raise row


def test_a_column_that_stands_twice_is_named(tmp_path):
    column = pyarrow.array(["a"])
    table = pyarrow.Table.from_arrays([column] * 3, ["prompt", "prompt", "response"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: the column 'prompt' appears twice"):
        rows_of(tmp_path / "a.parquet")


def test_the_field_of_a_json_file_and_the_delimiter_of_a_table_are_given(tmp_path):
    path, table = tmp_path / "rows.json", tmp_path / "rows.csv"
    path.write_text(json.dumps({"version": 1, "data": CHAT}))
    table.write_text("prompt;response\na,b;c\n")

    def read(**dataset):
        config = read_config({"max_seq_len": 9, **dataset})
        return [row for _, row in read_rows(config)]

    for named in ({"hf_name": str(path)}, {"hf_name": "json", "data_files": str(path)}):
        files = {key: named[key] for key in ("data_files",) if key in named}
        kwargs = {"field": "data", **files}
        assert read(hf_name=named["hf_name"], hf_kwargs=kwargs) == CHAT
        with pytest.raises(InputError, match=r"field='rows' names no list .*'data', 'version'"):
            read(hf_name=named["hf_name"], hf_kwargs={**kwargs, "field": "rows"})
    with pytest.raises(InputError, match=r"rows\.csv:1: .*hf_kwargs: \{delimiter: ';'\}"):
        read(hf_name=str(table))
    rows = read(hf_name=str(table), hf_kwargs={"delimiter": ";"})
    assert rows == [{"prompt": "a,b", "response": "c"}]


def test_what_datasets_reads_is_named_by_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.txt").write_text("hello\n")
    (tmp_path / "b.jsonl").write_text("{")
    config = read_config({"max_seq_len": 9, "hf_name": str(tmp_path / "a.txt")})
    where, _ = next(read_rows(config))
    assert str(where) == f"{tmp_path / 'a.txt'}[train] row 1"
    more = {"hf_name": str(tmp_path / "b.jsonl"), "split": "train", "hf_kwargs": {"chunksize": 10}}
    with pytest.raises(InputError, match=r"b\.jsonl', split='train': .*JSON") as caught:
        next(read_rows(read_config({"max_seq_len": 9, **more})))
    assert "\n" not in str(caught.value)


def test_a_folder_of_several_files_is_read_in_order(tmp_path):
    for i, row in enumerate(PLAIN):
        (tmp_path / f"part-{i}.jsonl.zst").write_bytes(packed(json.dumps(row).encode(), ".zst"))
    config = read_config({"max_seq_len": 9, "hf_name": str(tmp_path), "split": "train"})
    assert [row for _, row in read_rows(config)] == PLAIN
