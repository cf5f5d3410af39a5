"""Kept examples come back as they were made, and never where anything differs."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spin_composer.data import kept_examples, load, source_identity
from spin_composer.data.chat_template import renders_itself
from spin_composer.data.load import load_examples
from spin_composer.errors import InputError
from spin_composer.settings.dataset import read_config
from tests.data import templates
from tests.data.rows import CHAT, PLAIN, everything
from tests.data.test_parallel import OBSERVED, UNREAD
from tests.fixtures import tokenizers
from tests.fixtures.ranks import on_two_ranks

pytestmark = pytest.mark.usefixtures("nothing_is_small")


def with_template(template: str) -> Any:
    tokenizer = tokenizers.chatml()
    tokenizer.chat_template = template
    return tokenizer


WAYS: dict[str, tuple[list[Any], Callable[[], Any], dict[str, Any]]] = {
    "plain": (PLAIN, tokenizers.chatml, {}),
    "chat": (CHAT, tokenizers.chatml, {}),
    "notes and bad rows": (
        [*PLAIN, {"prompt": "<|im_end|>", "response": "no"}, {"prompt": "a"}], tokenizers.chatml,
        {"on_bad_row": "skip"},
    ),
    "a warning": (CHAT, lambda: with_template(templates.DATED), {}),
    "roles in the row's own words": (
        [{"messages": OBSERVED}, *CHAT], lambda: with_template(templates.REASONING), {}
    ),
    "texts that are not read": ([*CHAT, UNREAD], tokenizers.chatml, {}),
    "turns": (CHAT, tokenizers.chatml, {"tokenize": "turns"}),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_kept_examples_are_those_that_were_made(name, jsonl, kept, reads, caplog):
    rows, make, keys = WAYS[name]
    path = jsonl(rows)
    caplog.set_level(logging.WARNING)
    first = kept(path, make(), **keys, cache_dir=False)
    said, made = caplog.messages[:], everything(first)
    assert everything(kept(path, make(), **keys)) == made
    caplog.clear()
    count = len(reads)
    again = kept(path, make(), **keys)
    assert len(reads) == count, "a warm start reads no rows"
    assert isinstance(again.arrays()["tokens"], np.memmap)
    assert caplog.messages == said
    assert everything(again) == made


def test_a_kept_array_can_be_written_to_and_the_file_stays(jsonl, kept):
    path = jsonl(PLAIN)
    kept(path)
    mine = kept(path)[0].prompt
    mine[0] = 7
    assert kept(path)[0].prompt[0] != 7


def test_other_content_under_the_same_time_and_size_is_read_anew(jsonl, kept, reads):
    path = jsonl(PLAIN)
    before = path.stat()
    first = kept(path).fingerprint
    path.write_text(path.read_text().replace("clips", "chips"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert kept(path).fingerprint != first
    assert len(reads) == 2


def test_a_hash_is_remembered_only_of_a_file_that_has_rested(jsonl, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(source_identity, "_PRECISION_NS", 10**12)
    path = jsonl(PLAIN)
    kept(path)
    assert not (tmp_path / "cache" / "files").exists()
    os.utime(path, (0, 0))
    kept(path)
    assert not (tmp_path / "cache" / "files").exists(), "its inode has changed just now"


@pytest.mark.parametrize(
    "change",
    [
        lambda t, keys: t.add_tokens(["clips"]),
        lambda t, keys: setattr(t, "chat_template", templates.ZEPHYR),
        lambda t, keys: setattr(t, "eos_token", "<|im_end|>"),
        lambda t, keys: keys.update(max_seq_len=20),
        lambda t, keys: keys.update(tokenize="turns"),
        lambda t, keys: keys.update(preprocessing_fn="tests.data.test_parallel:shout"),
        lambda t, keys: keys.update(split="train[:2]"),
    ],
    ids=["an added token", "template", "EOS", "length", "turns", "function", "split"],
)
def test_what_the_examples_depend_on_is_in_their_key(change, jsonl, kept, reads):
    path, tokenizer = jsonl(PLAIN), tokenizers.chatml()
    kept(path)
    keys: dict[str, Any] = {}
    change(tokenizer, keys)
    kept(path, tokenizer, **keys)
    assert len(reads) == 2


def test_what_they_do_not_depend_on_is_not_in_their_key(jsonl, kept, reads):
    path, tokenizer = jsonl(PLAIN), tokenizers.chatml()
    kept(path)
    tokenizer("a", truncation=True, max_length=3)
    kept(path, tokenizer, num_proc=1, on_bad_row="skip")
    assert len(reads) == 1


def test_rows_that_a_function_of_the_users_changes_are_not_kept(
    jsonl, kept, reads, tmp_path, monkeypatch
):
    path = jsonl(PLAIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "words_of_mine.py").write_text("WORD = 'a'\n")
    (tmp_path / "function_of_mine.py").write_text(
        "from functools import partial\nfrom words_of_mine import WORD\n\n"
        "def add(word, row):\n    return {**row, 'response': word + row['response']}\n\n"
        "f = partial(add, WORD)\n"
    )
    for _ in range(2):
        kept(path, preprocessing_fn="function_of_mine:f")
    assert len(reads) == 2
    for _ in range(2):
        kept(path, preprocessing_fn="spin_composer.data.mappings:as_chat")
    assert len(reads) == 3


def test_rows_that_change_while_they_are_read_are_not_kept(jsonl, kept, reads, monkeypatch):
    path = jsonl(PLAIN)
    content = path.read_text()
    read = load.read_rows

    def changed(*given: Any):
        path.write_text(content.replace("a", "e"))
        yield from read(*given)
        path.write_text(content)  # with other times: it was another file

    with monkeypatch.context() as patch:
        patch.setattr(load, "read_rows", changed)
        wrong = everything(kept(path))
    assert everything(kept(path)) != wrong


@pytest.mark.parametrize("keys", [{"local": "nope"}, {"local": ".", "split": "val"}])
def test_local_streams_that_are_not_there_are_named_as_ever(keys, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nope|val"):
        kept(None, hf_name=None, **keys)


def test_bad_rows_that_were_left_out_are_an_error_where_they_are_one(jsonl, kept):
    path = jsonl([*PLAIN, {"prompt": "a"}])
    assert len(kept(path, on_bad_row="skip")) == len(PLAIN)
    with pytest.raises(InputError, match=r"train\.jsonl:5: "):
        kept(path)


@pytest.mark.parametrize("what", ["parquet", "folder", "data_files", "mds", "saved"])
def test_other_local_sources_are_kept_too(what, jsonl, kept, reads, tmp_path, gpt2):
    import datasets
    from streaming import MDSWriter

    (tmp_path / "of").mkdir()
    path, keys = jsonl(PLAIN, "of/train.jsonl"), {}
    if what == "parquet":
        keys["hf_name"] = str(tmp_path / "rows.parquet")
        datasets.Dataset.from_list(PLAIN).to_parquet(keys["hf_name"])
    elif what == "saved":
        keys["hf_name"] = str(tmp_path / "saved")
        datasets.Dataset.from_list(PLAIN).save_to_disk(keys["hf_name"])
    elif what == "folder":
        keys |= {"hf_name": str(path.parent), "split": "train"}
    elif what == "data_files":
        keys |= {"hf_name": "json", "hf_kwargs": {"data_files": str(path)}}
    else:
        with MDSWriter(out=str(tmp_path / "mds"), columns=dict.fromkeys(PLAIN[0], "str")) as out:
            for row in PLAIN:
                out.write(row)
        keys |= {"hf_name": None, "local": str(tmp_path / "mds")}
    made = [everything(kept(path, gpt2, **keys)) for _ in range(2)]
    assert made[0] == made[1]
    assert len(reads) == 1


def test_what_is_elsewhere_or_unknown_is_not_kept(jsonl, kept, reads, tmp_path):
    path = jsonl(PLAIN)
    for _ in range(2):
        kept(path, tokenizers.Words())
    assert len(reads) == 2
    assert not (tmp_path / "cache" / "examples").exists()


def a_rank(rank: int, path: str, cache: str | bool) -> tuple[int, str, str, list[str]]:
    """Load as a rank; return how often it read, what came, and which arrays it has."""
    source_identity._SMALL_BYTES = 0
    count, read = [0], load.read_rows

    def counted(*given: Any) -> Any:
        count[0] += 1
        return read(*given)

    load.read_rows = counted
    config = read_config({"max_seq_len": 100, "hf_name": path, "cache_dir": cache})
    made = load_examples(config, tokenizers.chatml())
    assert made.origin is not None
    kinds = [type(array).__name__ for array in made.arrays().values()]
    return count[0], made.fingerprint, str(made.origin.rows), kinds


@pytest.mark.parametrize("on", [True, False], ids=["kept", "handed over"])
def test_one_rank_of_a_node_reads_the_rows(on, jsonl, tmp_path):
    path = str(jsonl(CHAT))
    found = on_two_ranks(a_rank, path=path, cache=str(tmp_path / "cache") if on else False)
    assert [found[rank][0] for rank in range(2)] == [1, 0], found
    assert found[0][1:3] == found[1][1:3]
    assert found[1][3] == ["memmap"] * 3
    if on:
        again = on_two_ranks(a_rank, path=path, cache=str(tmp_path / "cache"))
        assert [again[rank][0] for rank in range(2)] == [0, 0]


def test_an_error_of_the_rank_that_reads_is_everyones(jsonl, tmp_path):
    path = str(jsonl([*CHAT, {"prompt": "a"}]))
    found = on_two_ranks(a_rank, path=path, cache=str(tmp_path / "cache"))
    assert all("field response is missing" in found[rank][1] for rank in range(2)), found
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_hashes_of_a_mounted_bucket_are_not_remembered():
    mounts = (
        "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
        "27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "90 27 0:52 / /mnt/a\\040bucket rw,nosuid shared:9 master:2 - fuse.gcsfuse bucket rw\n"
    )
    kinds = {os.makedev(8, 1): "ext4", os.makedev(0, 52): "fuse.gcsfuse", os.makedev(0, 99): ""}
    for device, kind in kinds.items():
        assert source_identity.file_system(device, mounts) == kind


def test_the_day_counts_where_a_class_of_the_users_renders_chats():
    tokenizer = tokenizers.chatml()
    assert not renders_itself(tokenizer)

    class OfToday(type(tokenizer)):
        def apply_chat_template(self, *given: Any, **more: Any) -> Any:
            return "today" + super().apply_chat_template(*given, **more)

    tokenizer.__class__ = OfToday
    assert renders_itself(tokenizer)


def test_rows_that_json_does_not_have_are_not_kept(jsonl, kept, tmp_path, caplog):
    made = kept(jsonl(PLAIN), cache_dir=False)
    assert made.origin is not None
    made.origin.rows[0][2]["prompt"] = {1: json}
    with pytest.raises(kept_examples.NotKept):
        kept_examples.save(made, tmp_path / "a")
