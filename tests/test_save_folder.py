"""The save folder after a kill: nothing partial is loaded, nothing is deleted, latest is whole."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch

from spin_composer.errors import InputError
from spin_composer.save_folder import (
    content_problem,
    find_checkpoints,
    name_pattern,
    repair_folder,
    require_readable,
)

FULL = name_pattern("ep{epoch}-ba{batch}-rank{rank}.pt", "run")
SHARDED = name_pattern("ep{epoch}-ba{batch}", "run")


def save(folder: Path, batch: int, keep: float = 1.0) -> Path:
    """Write a full checkpoint, of which ``keep`` has reached the disk."""
    folder.mkdir(exist_ok=True)
    path = folder / f"ep{batch // 6}-ba{batch}-rank0.pt"
    torch.save({"weight": torch.full((999,), float(batch))}, path)
    os.truncate(path, int(keep * path.stat().st_size))
    os.utime(path, ns=(0, batch * 10**9))
    return path


def save_sharded(folder: Path, batch: int, *, metadata: bool = True, keep: float = 1.0) -> Path:
    path = folder / f"ep{batch // 6}-ba{batch}"
    path.mkdir(parents=True)
    for rank in range(2):
        shard = path / f"__{rank}_0.distcp"
        torch.save(torch.arange(99), shard)
        os.truncate(shard, int(keep * shard.stat().st_size))
        os.utime(shard, ns=(0, batch * 10**9))
    if metadata:
        (path / ".metadata").write_bytes(b"not read")
        os.utime(path / ".metadata", ns=(0, batch * 10**9))
    return path


def link(folder: Path, target: Path) -> Path:
    latest = folder / "latest-rank0.pt"
    latest.symlink_to(target.name)
    return latest


def repaired(folder: Path, pattern=FULL) -> str | None:
    """Repair a folder; return what latest names."""
    latest = folder / "latest-rank0.pt"
    repair_folder(folder, pattern, latest)
    return os.readlink(latest) if latest.is_symlink() else None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_file_cut_short_is_set_aside_under_another_name(tmp_path, keep):
    link(tmp_path, save(tmp_path, 5))
    cut = save(tmp_path, 10, keep)
    content = cut.read_bytes()
    assert repaired(tmp_path) == "ep0-ba5-rank0.pt"
    aside = tmp_path / "ep1-ba10-rank0.pt.set-aside-1"
    assert aside.read_bytes() == content
    assert FULL.fullmatch(aside.name) is None
    assert not cut.exists()


def test_latest_names_the_checkpoint_that_was_written_after_it(tmp_path):
    link(tmp_path, save(tmp_path, 5))
    save(tmp_path, 10)
    assert repaired(tmp_path) == "ep1-ba10-rank0.pt"


def test_a_missing_latest_names_the_newest_whole_one(tmp_path):
    for batch in (5, 10, 100):
        save(tmp_path, batch)
    save(tmp_path, 105, keep=0.5)
    assert repaired(tmp_path) == "ep16-ba100-rank0.pt"


def test_a_latest_that_names_nothing_falls_back(tmp_path, caplog):
    save(tmp_path, 5)
    link(tmp_path, tmp_path / "ep9-ba99-rank0.pt")
    assert repaired(tmp_path) == "ep0-ba5-rank0.pt"
    assert "named ep9-ba99-rank0.pt; it now names ep0-ba5-rank0.pt" in caplog.text


def test_a_latest_that_names_a_damaged_file_falls_back(tmp_path):
    save(tmp_path, 5)
    path = save(tmp_path, 10)
    link(tmp_path, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # the structure is whole, the CRC of the weights is not
    path.write_bytes(content)
    assert repaired(tmp_path) == "ep0-ba5-rank0.pt"
    assert "ep1-ba10-rank0.pt.set-aside-1" in names(tmp_path)


def test_without_a_whole_checkpoint_latest_names_none(tmp_path):
    link(tmp_path, save(tmp_path, 5, keep=0.5))
    assert repaired(tmp_path) is None
    assert names(tmp_path) == ["ep0-ba5-rank0.pt.set-aside-1", "latest-rank0.pt.set-aside-1"]


def test_whole_checkpoints_of_an_earlier_try_stay_what_they_are(tmp_path):
    # Written before the one that latest names: Composer refuses them or overwrites them itself.
    later = save(tmp_path, 30)
    os.utime(later, ns=(0, 0))
    link(tmp_path, save(tmp_path, 5))
    before = names(tmp_path)
    assert repaired(tmp_path) == "ep0-ba5-rank0.pt"
    assert names(tmp_path) == before


def test_a_whole_folder_is_left_alone(tmp_path):
    save(tmp_path, 5)
    link(tmp_path, save(tmp_path, 10))
    (tmp_path / "huggingface").mkdir()
    before = names(tmp_path)
    assert repaired(tmp_path) == "ep1-ba10-rank0.pt"
    assert names(tmp_path) == before


def test_nothing_is_done_where_nothing_was_saved(tmp_path):
    assert repaired(tmp_path / "none") is None
    assert repaired(tmp_path) is None


def test_two_kills_in_the_same_save_keep_both_files(tmp_path):
    for _ in range(2):
        save(tmp_path, 5, keep=0.5)
        repaired(tmp_path)
    assert names(tmp_path) == ["ep0-ba5-rank0.pt.set-aside-1", "ep0-ba5-rank0.pt.set-aside-2"]


@pytest.mark.parametrize("cut", [{"metadata": False}, {"keep": 0.5}])
def test_a_sharded_checkpoint_that_is_not_whole_is_set_aside(tmp_path, cut):
    link(tmp_path, save_sharded(tmp_path, 5))
    save_sharded(tmp_path, 10, **cut)
    assert repaired(tmp_path, SHARDED) == "ep0-ba5"
    assert (tmp_path / "ep1-ba10.set-aside-1").is_dir()


def test_a_sharded_checkpoint_that_latest_does_not_name_yet_is_taken(tmp_path):
    link(tmp_path, save_sharded(tmp_path, 5))
    save_sharded(tmp_path, 10)
    assert repaired(tmp_path, SHARDED) == "ep1-ba10"


def test_a_folder_whose_newest_checkpoint_the_run_cannot_read_is_refused(tmp_path):
    for sharded in (False, True):
        require_readable(tmp_path / "missing", FULL, sharded)
    save(tmp_path, 5)
    save_sharded(tmp_path, 10)
    require_readable(tmp_path, FULL, sharded=True)
    with pytest.raises(InputError, match=r"ep1-ba10 is sharded.*Start two ranks or more") as caught:
        require_readable(tmp_path, FULL, sharded=False)
    assert "\n" not in str(caught.value)
    save(tmp_path, 15)
    require_readable(tmp_path, FULL, sharded=False)
    with pytest.raises(InputError, match=r"ep2-ba15-rank0\.pt is full.*state_dict_type=full"):
        require_readable(tmp_path, FULL, sharded=True)


def test_what_is_set_aside_or_not_whole_does_not_count_as_newest(tmp_path):
    save(tmp_path, 5)
    save_sharded(tmp_path, 10, metadata=False)
    save_sharded(tmp_path, 15).rename(tmp_path / "ep2-ba15.set-aside-1")
    require_readable(tmp_path, FULL, sharded=False)


def test_names_are_read_as_composer_writes_them(tmp_path):
    pattern = name_pattern("{run_name}-ba{batch}-ep{epoch}-ba{batch}.pt", "a.b")
    assert pattern.fullmatch("a.b-ba12-ep2-ba12.pt")
    assert not pattern.fullmatch("a.b-ba12-ep2-ba13.pt")
    assert not pattern.fullmatch("aXb-ba12-ep2-ba12.pt")
    (tmp_path / "a.b-ba12-ep2-ba12.pt").touch()
    assert find_checkpoints(tmp_path, pattern)[0].counts == (12, -1, -1, 2)


def test_any_flipped_byte_of_a_checkpoint_is_a_problem_or_none_and_never_an_error(tmp_path):
    path = tmp_path / "ba1.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"x" * 50)
        file.writestr("archive/data/0", bytes(range(200)))
    whole = path.read_bytes()
    assert content_problem(path) is None
    found = 0
    for place in range(len(whole)):
        for flip in (1, 8, 12, 255):  # 8 and 12 make other compressions of "stored"
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            found += content_problem(path) is not None
    assert found > 4 * 250  # every byte of the contents, and more
