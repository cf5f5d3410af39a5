"""A damaged or foreign store is found before anything is made of it, and mended where it can be."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.units import missing_units, units_of_run

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.pairs import STOP, Pair
from spin_composer.errors import EnvironmentFailure, StoreError
from spin_composer.play.prepare import (
    check_iteration,
    needed_bytes,
    resume_remedy,
)
from spin_composer.settings.spin import SpinSettings
from spin_composer.store import local
from spin_composer.store.local import LocalStore
from spin_composer.store.unit import UnitReport

SETTINGS = SpinSettings(unit_size=4)
LONGEST = 7
EXAMPLES = ExampleDataset.from_examples(
    [
        Example(np.arange(1, 3 + i % 3, dtype=np.int32), np.array([5, 0], np.int32), False)
        for i in range(10)
    ],
    stop_token_id=0,
)
UNITS = units_of_run(SETTINGS, 5, 0, len(EXAMPLES))  # of 4, 4 and 2 prompts
MANIFEST: dict[str, Any] = {
    "iteration": 0,
    "seed": 5,
    "num_units": len(UNITS),
    "generation": {"max_new_tokens": LONGEST},
    "data": "d",
    "tokenizer": "t",
    "opponent": "o",
}


def make_unit(store: LocalStore, unit: int) -> None:
    rows = []
    for i in UNITS[unit].indices:  # pyright: ignore[reportAttributeAccessIssue]
        example = EXAMPLES[int(i)]
        generated = np.arange(LONGEST, dtype=np.int32)  # as long as one can be
        rows.append(Pair(example.prompt, example.response, generated, index=int(i), finish=STOP))
    report = UnitReport("play", len(rows), len(rows), 0, 0, 1, 0.1, 0.1, 0.0)
    store.commit_unit(0, unit, rows, report)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """A store whose play stopped after two of three units."""
    store = LocalStore(tmp_path / "store")
    store.open_iteration(MANIFEST)
    make_unit(store, 0)
    make_unit(store, 1)
    return store


def reopen(store: LocalStore, repair: bool = False, **other: Any) -> None:
    manifest = {**MANIFEST, **other}
    check_iteration(store, manifest, UNITS, EXAMPLES, repair, range(len(UNITS)))
    store.open_iteration(manifest)


def shard(store: LocalStore, unit: int) -> Path:
    return next(store.unit_folder(0, unit).glob("shard.*"))


def truncate(store: LocalStore) -> None:
    shard(store, 1).write_bytes(shard(store, 1).read_bytes()[:-5])


def flip(store: LocalStore) -> None:
    content = bytearray(shard(store, 1).read_bytes())
    content[len(content) // 2] ^= 4
    shard(store, 1).write_bytes(content)


def lose_a_shard(store: LocalStore) -> None:
    shard(store, 1).unlink()


def lose_the_report(store: LocalStore) -> None:
    (store.unit_folder(0, 1) / "unit.json").unlink()


def damage_the_report(store: LocalStore) -> None:
    (store.unit_folder(0, 1) / "unit.json").write_text("{}")


DAMAGES = [truncate, flip, lose_a_shard, lose_the_report, damage_the_report]


def test_a_whole_store_is_opened_and_left_as_it_is(store):
    before = {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()}
    reopen(store)
    reopen(store, repair=True)
    assert {p: p.read_bytes() for p in store.root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_unit_is_said_in_one_line_with_the_remedy(store, damage):
    damage(store)
    with pytest.raises(StoreError) as caught:
        reopen(store)
    said = str(caught.value)
    assert "unit-00001" in said
    assert re.search(r"(damaged|missing)", said)
    assert "algorithms.spin.repair=true" in said
    assert "\n" not in said


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_sets_the_unit_aside_so_that_it_is_made_again(store, damage):
    damage(store)
    reopen(store, repair=True)
    assert missing_units(store, 0, range(3)) == [1, 2]
    assert not store.unit_folder(0, 1).exists()
    assert (store.folder(0) / "set-aside" / "unit-00001-1").is_dir()
    make_unit(store, 1)
    make_unit(store, 2)
    reopen(store)
    store.fetch(0, 3)


def test_a_missing_unit_is_made_without_being_asked(store):
    shutil.rmtree(store.unit_folder(0, 0))
    reopen(store)
    assert missing_units(store, 0, range(3)) == [0, 2]


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_units_that_no_manifest_explains_are_refused_or_set_aside(store, text):
    path = store.folder(0) / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(StoreError, match=r"algorithms\.spin\.repair=true"):
        reopen(store)
    reopen(store, repair=True)
    assert missing_units(store, 0, range(3)) == [0, 1, 2]
    assert len(list((store.root / "iter-000.set-aside-1/units").iterdir())) == 2
    assert store.manifest(0)["seed"] == 5


def test_a_damaged_manifest_without_units_is_refused_or_set_aside(store):
    shutil.rmtree(store.folder(0) / "units")
    (store.folder(0) / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        reopen(store)
    reopen(store, repair=True)
    assert (store.root / "iter-000.set-aside-1/manifest.json").read_text() == "{"
    assert store.manifest(0)["seed"] == 5


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        {"opponent": "another model"},
        {"data": "another set"},
        {"tokenizer": "another"},
        {"seed": 6},
        {"generation": {"max_new_tokens": LONGEST, "temperature": 2.0}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_runs_store_is_refused_by_the_field_even_with_repair(store, other, repair):
    (name,) = other
    with pytest.raises(StoreError, match=rf"played by another run; it differs in {name} \(") as e:
        reopen(store, repair, **other)
    assert "\n" not in str(e.value)
    assert missing_units(store, 0, range(3)) == [2]


def test_what_a_killed_writer_left_is_removed_when_no_writer_can_be_at_it(store, monkeypatch):
    units = store.folder(0) / "units"
    (units / ".unit-00002.0123abcd").mkdir()
    (store.folder(0) / ".manifest.json.0123abcd").touch()
    (store.folder(0) / ".mine").touch()
    reopen(store)
    assert (units / ".unit-00002.0123abcd").exists()  # it may be a live writer's
    monkeypatch.setattr(local, "_LEFTOVER_SECONDS", -1.0)
    reopen(store)
    assert sorted(p.name for p in units.iterdir()) == ["unit-00000", "unit-00001"]
    assert {p.name for p in store.folder(0).iterdir()} == {"units", "manifest.json", ".mine"}


def test_the_space_counted_is_enough_and_not_far_too_much(tmp_path):
    store = LocalStore(tmp_path)
    store.open_iteration(MANIFEST)
    make_unit(store, 0)
    taken = sum(-(-p.stat().st_size // 4096) * 4096 for p in store.unit_folder(0, 0).iterdir())
    counted = needed_bytes(store, UNITS[:1], EXAMPLES, LONGEST)
    assert taken <= counted < 3 * taken


def test_too_little_space_is_said_before_play_with_both_numbers(store, monkeypatch):
    needed = needed_bytes(store, UNITS[2:], EXAMPLES, LONGEST)

    class Usage:
        free = needed

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    assert missing_units(store, 0, range(3)) == [2]
    reopen(store)
    Usage.free = needed - 1
    with pytest.raises(EnvironmentFailure) as caught:
        reopen(store)
    said = str(caught.value)
    assert said.startswith("the 1 units that iteration 0 still plays take up to ")
    assert "kB free. Free space there, or set algorithms.spin.store" in said
    make_unit(store, 2)
    reopen(store)  # nothing is missing, so nothing is needed


def test_an_iteration_that_the_disk_has_no_room_for_leaves_nothing(tmp_path, monkeypatch):
    class Usage:
        free = 0

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    new = LocalStore(tmp_path / "new")
    with pytest.raises(EnvironmentFailure, match="Free space there"):
        reopen(new)
    assert not new.root.exists()


def test_in_training_the_remedy_names_the_checkpoints_to_move():
    assert "move all checkpoints out of save_folder" in resume_remedy(0, 2)
    assert "move all checkpoints after epoch 4 out of save_folder" in resume_remedy(2, 2)


def test_a_try_of_a_shared_folder_that_was_killed_is_swept(store, tmp_path):
    left = store.root / ".shared.0a1b2c3d"
    left.touch()
    os.utime(left, (0, 0))
    reopen(store)
    assert not left.exists()
