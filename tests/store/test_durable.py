"""Small files: created once, and sealed so that no changed byte is read as what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin_composer.store.durable import (
    create_atomically,
    dump_hashed,
    hash_file,
    json_object,
    load_hashed,
)

CONTENT = {"pairs": 3, "noise": 1e-7, "files": {"a": {"bytes": 1}}}


def test_of_two_that_create_a_file_the_first_ones_stays(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert create_atomically(path, "first")
    assert not create_atomically(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_sealed_is_returned() -> None:
    assert load_hashed(dump_hashed(CONTENT)) == CONTENT


def test_a_seal_that_any_byte_differs_in_is_refused() -> None:
    text = dump_hashed(CONTENT)
    for i in range(len(text)):
        with pytest.raises(ValueError, match=r".*"):
            load_hashed(f"{text[:i]}{chr(ord(text[i]) ^ 1)}{text[i + 1 :]}")
        with pytest.raises(ValueError, match=r".*"):
            load_hashed(text[:i])


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        json_object(text)


def test_a_files_hash_is_of_all_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    content = bytearray((1 << 20) + 1)  # more than one read
    path.write_bytes(content)
    before = hash_file(path)
    content[-1] = 1
    path.write_bytes(content)
    assert hash_file(path) != before
