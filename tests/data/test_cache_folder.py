"""The folder of kept examples: where it is, what it makes of data around it, what it loses."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from spin_composer.data import cache_folder as folders
from spin_composer.data.cache_folder import cache_folder, trim
from spin_composer.settings.dataset import read_config
from tests.data.rows import PLAIN, everything

pytestmark = pytest.mark.usefixtures("nothing_is_small")


def age(path: Path, days: float) -> None:
    at = time.time() - 86400 * days
    os.utime(path, (at, at))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "examples"


def test_where_examples_are_kept(tmp_path, monkeypatch):
    def folder(**keys: Any) -> Path | None:
        return cache_folder(read_config({"max_seq_len": 9, "hf_name": "a", **keys}))

    monkeypatch.delenv("SPIN_COMPOSER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder() == tmp_path / "spin_composer"
    monkeypatch.setenv("SPIN_COMPOSER_CACHE", str(tmp_path / "mine"))
    assert folder() == tmp_path / "mine"
    assert folder(cache_dir="/a") == Path("/a")
    assert folder(cache_dir=False) is None
    monkeypatch.setenv("SPIN_COMPOSER_CACHE", "")
    assert folder() is None


def test_examples_that_nobody_used_for_a_month_are_removed_when_others_are_kept(
    jsonl, kept, root, caplog
):
    caplog.set_level(logging.INFO)
    kept(jsonl(PLAIN, "a.jsonl"))
    (unused,) = root.iterdir()
    kept(jsonl(PLAIN, "b.jsonl"))
    (lately,) = set(root.iterdir()) - {unused}
    age(unused, 31)
    age(lately, 29)
    age(root.parent / "files", 99)
    for record in (root.parent / "files").iterdir():
        age(record, 31)
    gc.collect()
    kept(jsonl(PLAIN, "c.jsonl"))
    assert lately.exists()
    assert not unused.exists()
    assert len(os.listdir(root)) == 2
    assert len(os.listdir(root.parent / "files")) == 1
    assert len([m for m in caplog.messages if "1 sets of examples that nobody has used" in m]) == 1


def test_examples_that_are_in_use_are_never_removed(jsonl, kept, root):
    held = [kept(jsonl(PLAIN, "a.jsonl"))]
    (used,) = root.iterdir()
    age(used, 99)
    trim(root.parent)
    assert used.exists()
    assert len(everything(held[0])) > 0
    held.clear()
    gc.collect()
    age(used, 99)
    trim(root.parent)
    assert os.listdir(root) == []


def test_to_load_examples_is_to_use_them(jsonl, kept, root):
    path = jsonl(PLAIN)
    kept(path)
    (folder,) = root.iterdir()
    age(folder, 99)
    kept(path)
    gc.collect()
    trim(root.parent)
    assert folder.exists()


def test_examples_that_are_being_removed_are_made_anew(jsonl, kept, root, reads):
    path = jsonl(PLAIN)
    made = everything(kept(path))
    gc.collect()
    (folder,) = root.iterdir()
    with (folder / folders.ABOUT).open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert everything(kept(path)) == made
    assert len(reads) == 2
    assert everything(kept(path)) == made
    assert len(reads) == 2


def test_only_what_dead_processes_left_an_hour_ago_is_removed(root, tmp_path):
    host, key = socket.gethostname(), "0123456789abcdef" * 2
    of = {
        "mine": f".{key}@{host}@{os.getpid()}.0123abcd",
        "another machine's": f".{key}@elsewhere@1.0123abcd",
        "a dead process's, or another container's": f".{key}@{host}@999999999.0123abcd",
    }
    gone = {"now": set[str](), "an hour ago": {"a dead process's, or another container's"}}
    gone["a month ago"] = set(of)
    for when, days in {"now": 0.0, "an hour ago": 0.05, "a month ago": 31.0}.items():
        for name in of.values():
            (root / name).mkdir(parents=True)
            age(root / name, days)
        trim(tmp_path / "cache")
        assert {what for what, name in of.items() if not (root / name).exists()} == gone[when]
        shutil.rmtree(root)


@pytest.mark.parametrize("cache", ["data", "data/cache"])
@pytest.mark.parametrize("what", ["files", "another split's", "saved"])
def test_a_cache_within_the_data_is_no_part_of_them(what, cache, jsonl, kept, reads, tmp_path):
    import datasets

    data = tmp_path / "data"
    if what == "saved":
        datasets.Dataset.from_list(PLAIN).save_to_disk(str(data))
    else:
        data.mkdir()
        jsonl(PLAIN, "data/rows.jsonl" if what == "files" else "data/train.jsonl")
        if what != "files":
            jsonl(PLAIN[:1], "data/test.jsonl")
    keys: dict[str, Any] = {"cache_dir": str(tmp_path / cache), "split": "train"}
    made = everything(kept(data, **keys))
    assert len(made[-1]) == len(PLAIN)
    assert everything(kept(data, **keys)) == made
    assert len(reads) == 1
    kept(data, **keys, max_seq_len=99)
    assert everything(kept(data, **keys, max_seq_len=99))[-1] == made[-1]
    assert len(reads) == 2
    if what == "another split's":  # nothing else that lies there is read
        (data / "runs").mkdir()
        jsonl([{"a": 1}], "data/runs/log.jsonl")
        jsonl(PLAIN[:2], "data/test.jsonl")
        kept(data, **keys)
        assert len(reads) == 2


def test_files_that_have_a_caches_names_elsewhere_are_data(tmp_path):
    key = "0123456789abcdef" * 2
    for name, of_cache in {
        f"examples/{key}/tokens.npy": True, f"examples/.{key}@a@1.0123abcd/tokens.npy": True,
        f"files/{key[:16]}.json": True, f"files/.{key[:16]}.json.0123abcd": True,
        "examples/train.jsonl": False, "files/train.jsonl": False, "train.jsonl": False,
        f"more/examples/{key}/tokens.npy": False, f"../examples/{key}/tokens.npy": False,
    }.items():  # fmt: skip
        assert folders.is_of_cache(tmp_path / name, tmp_path) == of_cache, name
    assert not folders.is_of_cache(tmp_path / f"files/{key[:16]}.json", None)


def test_files_that_are_not_the_caches_stay_in_a_folder_that_is_named_as_it(root):
    others = [root.parent / "files/train.jsonl", root / "demo/examples.json"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
        age(path, 99)
    age(root / "demo", 99)
    trim(root.parent)
    assert all(path.exists() for path in others)
