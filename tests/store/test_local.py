"""The self-play store: a unit is there whole, as it was written, or its damage is named."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fixtures.units import missing_units
from streaming import StreamingDataset

from spin_composer.data.pairs import LENGTH, STOP, Pair
from spin_composer.errors import StoreError
from spin_composer.store.durable import write_atomically
from spin_composer.store.local import LocalStore
from spin_composer.store.unit import UnitReport, pair_from_sample


def make_rows(num_rows: int, seed: int = 0) -> list[Pair]:
    rng = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return rng.integers(0, 2**31 - 1, rng.integers(1, 9), dtype=np.int32)

    return [
        Pair(
            index=int(rng.integers(2**40)),
            prompt=ids(),
            real=ids(),
            generated=ids(),
            opponent_real=float(rng.normal()),
            opponent_generated=-1e-300 * i,
            finish=STOP if i % 2 else LENGTH,
        )
        for i in range(num_rows)
    ]


def make_report(pairs: int, kind: str = "play", degenerate: int = 0) -> UnitReport:
    return UnitReport(kind, pairs + degenerate, pairs, degenerate, 1, 17, 0.5, 0.25, 1e-7)


def commit(store: LocalStore, unit: int, rows: Sequence[Pair], iteration: int = 0) -> None:
    store.commit_unit(iteration, unit, rows, make_report(len(rows)))


def plain(rows: Sequence[Pair]) -> list[object]:
    """Return rows as nested lists, which compare."""
    return [
        (
            row.index,
            *(ids.tolist() for ids in (row.prompt, row.real, row.generated)),
            row.opponent_real,
            row.opponent_generated,
            row.finish,
        )
        for row in rows
    ]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Return a store with a manifest and two units of iteration 0."""
    store = LocalStore(tmp_path / "store")
    store.open_iteration({"iteration": 0, "seed": 3})
    commit(store, 0, make_rows(5, seed=1))
    commit(store, 1, make_rows(4, seed=2))
    return store


def refusal(store: LocalStore, num_units: int = 2) -> str:
    with pytest.raises(StoreError) as caught:
        store.fetch(0, num_units)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is written is read ------------------------------------------------------------------


def test_rows_read_back_equal_what_was_written(store: LocalStore) -> None:
    rows = list(store.read_unit(0, 0))
    assert plain(rows) == plain(make_rows(5, seed=1))  # fp64 sums to the last bit
    assert all(x.dtype == np.int32 for row in rows for x in (row.real, row.generated))
    assert store.report(0, 0) == make_report(5)


def test_merged_units_are_read_by_streaming_in_the_units_order(store: LocalStore) -> None:
    assert store.merge(0, 2) == 9
    local = str(store.folder(0) / "units")
    dataset = StreamingDataset(local=local, batch_size=1, shuffle=False, allow_unsafe_types=False)
    rows = [pair_from_sample(dataset[i]) for i in range(len(dataset))]
    assert plain(rows) == plain([*make_rows(5, seed=1), *make_rows(4, seed=2)])


def test_merging_again_changes_nothing(store: LocalStore) -> None:
    store.merge(0, 2)
    index = store.folder(0) / "units" / "index.json"
    before = index.read_bytes()
    assert store.merge(0, 2) == 9
    assert index.read_bytes() == before


def test_an_all_degenerate_unit_is_complete_and_empty(store: LocalStore) -> None:
    store.commit_unit(0, 2, [], make_report(0, degenerate=5))
    assert missing_units(store, 0, range(3)) == []
    store.fetch(0, 3)
    assert list(store.read_unit(0, 2)) == []
    assert store.report(0, 2).degenerate == 5
    assert store.merge(0, 3) == 9


def test_an_iteration_of_degenerate_pairs_only_merges_to_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    commit(store, 0, [])
    assert store.merge(0, 1) == 0


def test_columns_are_numbers_only_so_that_reading_never_unpickles(store: LocalStore) -> None:
    for path in store.root.rglob("unit-*/index.json"):
        for shard in json.loads(path.read_text())["shards"]:
            assert all(
                encoding in ("int", "int64", "float64") or encoding.startswith("ndarray:int32")
                for encoding in shard["column_encodings"]
            )


# --- wholly or not at all ---------------------------------------------------------------------


def test_a_writer_that_dies_leaves_no_unit(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [*make_rows(3), Pair(*[np.empty(0, np.int32)] * 3, index=1)]
    with pytest.raises(Exception, match=r".*"):
        commit(store, 2, bad)  # MDS refuses the empty array in the middle of the unit
    assert missing_units(store, 0, range(3)) == [2]
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        commit(store, 2, make_rows(3))
    assert missing_units(store, 0, range(3)) == [2]
    names = sorted(path.name for path in (store.folder(0) / "units").iterdir())
    assert names == ["unit-00000", "unit-00001"]  # nothing is left aside


def test_a_unit_committed_by_another_process_stays(store: LocalStore) -> None:
    commit(store, 0, make_rows(2, seed=9))
    assert plain(list(store.read_unit(0, 0))) == plain(make_rows(5, seed=1))
    assert len(list((store.folder(0) / "units").iterdir())) == 2


def test_a_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.json"
    write_atomically(path, "first")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


# --- damage is named --------------------------------------------------------------------------


def test_a_whole_store_passes(store: LocalStore) -> None:
    store.fetch(0, 2)


def test_a_flipped_byte_is_found(store: LocalStore) -> None:
    for path in sorted(store.unit_folder(0, 1).iterdir()):
        if path.name == "unit.json":
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        said = refusal(store)
        assert said.startswith(f"{path} is damaged")
        assert f"Delete {store.unit_folder(0, 1)}" in said
        path.write_bytes(whole)
    store.fetch(0, 2)


def test_a_truncated_or_deleted_file_is_found(store: LocalStore) -> None:
    path = next(store.unit_folder(0, 0).glob("shard.*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert f"{path} is damaged ({len(whole) - 7} bytes)" in refusal(store)
    path.unlink()
    assert f"{path} is " in refusal(store)


def test_a_missing_unit_is_found(store: LocalStore) -> None:
    assert missing_units(store, 0, range(4)) == [2, 3]
    said = refusal(store, num_units=3)
    assert said.startswith(f"{store.unit_folder(0, 2)} is missing. Delete ")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": 3}'])
def test_a_damaged_unit_json_is_found(store: LocalStore, text: str) -> None:
    path = store.unit_folder(0, 0) / "unit.json"
    path.write_text(text)
    assert refusal(store).startswith(f"{path} is damaged. Delete ")


def test_a_unit_json_with_changed_counts_is_found(store: LocalStore) -> None:
    path = store.unit_folder(0, 0) / "unit.json"
    path.write_text(path.read_text().replace('"pairs": 5', '"pairs": 6'))
    assert "damaged" in refusal(store)


# --- the manifest -----------------------------------------------------------------------------


def test_the_same_manifest_is_accepted_and_kept(store: LocalStore) -> None:
    before = (store.folder(0) / "manifest.json").read_bytes()
    store.open_iteration({"iteration": 0, "seed": 3})
    assert (store.folder(0) / "manifest.json").read_bytes() == before
    assert store.manifest(0) == {"format_version": 2, "iteration": 0, "seed": 3}


def test_another_runs_manifest_is_refused_by_its_fields(store: LocalStore) -> None:
    with pytest.raises(StoreError) as caught:
        store.open_iteration({"iteration": 0, "seed": 4, "opponent": "abc"})
    said = str(caught.value)
    assert "opponent (store None, run 'abc'), seed (store 3, run 4)" in said
    assert "iteration (" not in said
    assert "Delete it" in said
    assert "\n" not in said


def test_units_without_a_manifest_are_refused(store: LocalStore) -> None:
    (store.folder(0) / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"has units but no manifest\.json.*Delete"):
        store.open_iteration({"iteration": 0, "seed": 3})
    with pytest.raises(StoreError, match=r"manifest\.json is missing.*Restore"):
        store.manifest(0)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_manifest_is_named(store: LocalStore, text: str) -> None:
    (store.folder(0) / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=r"manifest\.json is damaged.*Delete"):
        store.manifest(0)


def test_a_manifest_by_which_nothing_was_played_gives_way_to_the_locks_holder(tmp_path) -> None:
    store = LocalStore(tmp_path / "new")
    store.open_iteration({"iteration": 0, "seed": 3})
    with pytest.raises(StoreError, match=r"differs in seed \(store 3, run 4\)"):
        store.open_iteration({"iteration": 0, "seed": 4})  # a job that only plays
    store.open_iteration({"iteration": 0, "seed": 4}, replace=True)
    assert store.manifest(0)["seed"] == 4


def test_a_manifest_by_which_a_unit_is_being_written_stays(tmp_path) -> None:
    store = LocalStore(tmp_path / "new")
    store.open_iteration({"iteration": 0, "seed": 3})
    (store.folder(0) / "units/.unit-00000.1a2b3c4d").mkdir()
    with pytest.raises(StoreError, match="differs in seed"):
        store.open_iteration({"iteration": 0, "seed": 4}, replace=True)


def test_a_manifest_without_later_fields_is_that_of_the_old_way(store: LocalStore) -> None:
    store.open_iteration({"iteration": 0, "seed": 3, "tokenize": "turns", "degenerate": "ids"})
    with pytest.raises(StoreError, match=r"tokenize \(store 'turns', run 'rendering'\)"):
        store.open_iteration({"iteration": 0, "seed": 3, "tokenize": "rendering"})
