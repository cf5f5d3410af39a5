"""Kept examples that are damaged, half written or written twice, and places that take none."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin_composer.data import kept_examples
from spin_composer.data.cache_folder import trim
from tests.data.rows import PLAIN, everything

NO_ROOM = "cannot be kept"

pytestmark = pytest.mark.usefixtures("nothing_is_small")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGE = [
    (name, harm)
    for name in ("tokens.npy", "ends.npy", "truncated.npy", "examples.json")
    for harm in (shorten, Path.unlink, flip)
]


@pytest.mark.parametrize(("name", "harm"), DAMAGE)
def test_damaged_examples_are_made_anew_with_one_warning(
    name, harm, jsonl, kept, reads, tmp_path, caplog
):
    path = jsonl(PLAIN)
    made = everything(kept(path))
    (folder,) = (tmp_path / "cache" / "examples").iterdir()
    harm(folder / name)
    assert everything(kept(path)) == made
    assert len(reads) == 2
    assert [m for m in caplog.messages if "made anew" in m] == [
        m for m in caplog.messages if str(folder) in m
    ]
    assert len([m for m in caplog.messages if "made anew" in m]) == 1
    assert everything(kept(path)) == made
    assert len(reads) == 2
    assert os.listdir(folder.parent) == [folder.name]


def test_another_format_is_not_read(jsonl, kept, reads, monkeypatch, caplog):
    path = jsonl(PLAIN)
    kept(path)
    monkeypatch.setattr(kept_examples, "_FORMAT", 2)
    kept(path)
    kept(path)
    assert len(reads) == 2
    assert "it is of format 1, not 2" in caplog.text


def test_a_folder_that_cannot_be_written_costs_one_warning(jsonl, kept, tmp_path, caplog):
    path = jsonl(PLAIN)
    (tmp_path / "file").touch()
    examples = kept(path, cache_dir=str(tmp_path / "file" / "cache"))
    assert len(examples) == len(PLAIN)
    assert len([m for m in caplog.messages if NO_ROOM in m]) == 1


def test_a_full_disk_costs_one_warning_and_leaves_nothing(jsonl, kept, tmp_path, caplog):
    import resource

    path = jsonl(PLAIN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        examples = kept(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(examples) == len(PLAIN)
    assert len([m for m in caplog.messages if NO_ROOM in m]) == 1
    assert os.listdir(tmp_path / "cache" / "examples") == []


def in_a_copy(run: Callable[[], object]) -> int:
    """Run in a fork of this process; return its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("step", ["save", "rename", "fsync"])
def test_a_process_killed_while_it_writes_leaves_nothing_half(
    step, jsonl, kept, reads, tmp_path, monkeypatch
):
    path, count = jsonl(PLAIN), [0]
    module, name = {
        "save": (np, "save"), "rename": (os, "rename"), "fsync": (kept_examples, "fsync")
    }[step]  # fmt: skip
    usual = getattr(module, name)

    def deadly(*given: Any) -> Any:
        count[0] += 1
        if count[0] == 2 or step == "rename":
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(*given)

    def killed() -> None:
        monkeypatch.setattr(module, name, deadly)
        kept(path)

    assert in_a_copy(killed) == signal.SIGKILL
    root = tmp_path / "cache" / "examples"
    (left,) = root.iterdir()
    assert left.name.startswith(".")
    made = everything(kept(path))
    assert len(reads) == 1, "nothing half was taken for examples"
    assert everything(kept(path)) == made
    assert len(os.listdir(root)) == 2
    os.utime(left, (0, 0))
    trim(root.parent)
    assert not left.exists()


def test_two_processes_that_make_the_same_are_both_right(jsonl, kept, tmp_path):
    path = jsonl(PLAIN)
    made = kept(path)
    (folder,) = (tmp_path / "cache" / "examples").iterdir()
    for damaged in (False, True):
        kept_examples.save(made, folder, damaged)
        assert everything(kept(path)) == everything(made)
    assert os.listdir(folder.parent) == [folder.name]


def test_a_file_that_cannot_be_read_costs_a_warning_and_the_rows_are_made(
    jsonl, kept, tmp_path, caplog
):
    path = jsonl(PLAIN)
    made = everything(kept(path))
    (folder,) = (tmp_path / "cache" / "examples").iterdir()
    (folder / "examples.json").unlink()
    (folder / "examples.json").mkdir()  # an error of the system's, as of a file server that is gone
    assert everything(kept(path)) == made
    assert [m for m in caplog.messages if f"{folder} cannot be read" in m]
