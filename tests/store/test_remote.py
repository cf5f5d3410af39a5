"""A store in an object store: a unit is there once its marker is; damage is found at fetching."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from fixtures.s3 import BUCKET, S3
from fixtures.units import missing_units

from spin_composer.errors import EnvironmentFailure, StoreError
from spin_composer.play.player import finish_play
from spin_composer.play.prepare import check_iteration
from spin_composer.store import unit as unit_module
from spin_composer.store.durable import hash_file
from spin_composer.store.layout import REPORT
from spin_composer.store.object_folder import ObjectFolder
from spin_composer.store.remote import RemoteStore
from tests.play.test_prepare import EXAMPLES, MANIFEST, UNITS, flip, truncate
from tests.store.conftest import node, reopen
from tests.store.test_local import commit, make_report, make_rows, plain

PREFIX = "run/self-play/iter-000"


def bring(store: RemoteStore, num_units: int = 2, remedy: str = "Do X.") -> None:
    store.fetch(0, num_units, store.select_attempts(0, num_units, remedy), remedy)


def making(s3: S3, unit: int) -> str:
    (key,) = [k for k in s3.names(f"{PREFIX}/done/unit-{unit:05d}-") if k.endswith(".json")]
    return key.removeprefix(f"{PREFIX}/done/unit-{unit:05d}-").removesuffix(".json")


def shard_key(s3: S3, unit: int) -> str:
    return f"{PREFIX}/units/unit-{unit:05d}-{making(s3, unit)}/shard.00000.mds"


# --- what one node makes the other has --------------------------------------------------------


def test_units_made_on_one_node_are_the_same_bytes_on_another(a, b):
    reopen(b)
    assert missing_units(b, 0, range(3)) == [2]
    bring(b)
    for unit in range(2):
        files = {p.name: p.read_bytes() for p in a.unit_folder(0, unit).iterdir()}
        assert {p.name: p.read_bytes() for p in b.unit_folder(0, unit).iterdir()} == files
    assert plain(list(b.read_unit(0, 1))) == plain(make_rows(4, seed=2))
    assert (finish_play(b, 0, 2).pairs, b.merge(0, 2)) == (9, 9)
    assert b.manifest(0) == a.manifest(0)


def test_the_marker_is_uploaded_last(a, s3):
    paths = [path.removeprefix(f"/{BUCKET}/{PREFIX}/") for path in s3.puts()]
    assert [path.split("/")[0] for path in paths] == [
        "manifest.json", *(["units", "units", "done"] * 2)
    ]  # fmt: skip


def test_a_unit_whose_upload_was_cut_off_is_missing_and_taken_up_by_its_node(a, b, s3):
    s3.fault = lambda method, path: method == "PUT" and "/done/" in path
    with pytest.raises(EnvironmentFailure, match="cannot be written"):
        commit(a, 2, make_rows(3, seed=3))
    s3.fault = lambda *_: False
    assert missing_units(a, 0, range(3)) == missing_units(b, 0, range(3)) == [2]
    assert not b.recover_unit(0, 2)
    assert a.recover_unit(0, 2)
    assert missing_units(b, 0, range(3)) == []
    reopen(b)
    bring(b, 3)
    assert plain(list(b.read_unit(0, 2))) == plain(make_rows(3, seed=3))


def test_passing_failures_of_the_object_store_cost_nothing(a, b, s3):
    asked = {"n": 0}

    def fault(method: str, path: str) -> bool:
        asked["n"] += 1
        return asked["n"] % 3 == 0

    s3.fault = fault
    commit(a, 2, [])  # an all-degenerate unit is its marker alone
    reopen(b)
    bring(b, 3)
    assert list(b.read_unit(0, 2)) == []
    assert plain(list(b.read_unit(0, 0))) == plain(make_rows(5, seed=1))


def test_two_makings_of_a_unit_do_not_mix_and_one_is_settled_for_all(a, b, s3, tmp_path):
    reopen(b)
    commit(b, 0, make_rows(6, seed=9))  # two jobs made it at once
    first = b.select_attempts(0, 2, "")
    for _ in range(3):
        commit(node(tmp_path, f"late{_}"), 0, make_rows(7, seed=10 + _))
    assert a.select_attempts(0, 2, "") == first
    bring(a)
    bring(b)
    assert plain(list(a.read_unit(0, 0))) == plain(list(b.read_unit(0, 0)))
    assert (
        a.select_attempts(0, 1, "") == first[:1]
    )  # of a later iteration that replays the first unit


# --- what it takes --------------------------------------------------------------------------


def test_a_unit_that_is_on_a_node_is_hashed_once_from_plan_to_training(a, monkeypatch):
    hashed: Counter[Path] = Counter()

    def counting(path: Path) -> str:
        hashed[path] += 1
        return hash_file(path)

    monkeypatch.setattr(unit_module, "hash_file", counting)
    checked = check_iteration(a, MANIFEST, UNITS, EXAMPLES, False, range(2))
    a.open_iteration(MANIFEST)
    a.fetch(0, 2, a.select_attempts(0, 2, ""), verified=checked.verified)
    files = {path for unit in range(2) for path in a.unit_folder(0, unit).iterdir()}
    assert hashed == dict.fromkeys((path for path in files if path.name != REPORT), 1)


def test_a_verified_unit_gives_way_to_the_attempt_that_was_settled(a, b):
    reopen(b)
    commit(b, 0, make_rows(6, seed=9))
    settled = a.select_attempts(0, 2, "")
    for store in (a, b):
        store.fetch(0, 2, settled, verified={0, 1})
    assert plain(list(a.read_unit(0, 0))) == plain(list(b.read_unit(0, 0)))


@pytest.fixture
def listed(monkeypatch) -> list[str]:
    """The prefixes that were listed since the test began."""
    found: list[str] = []
    names = ObjectFolder.names

    def listing(self: ObjectFolder, prefix: str = "") -> list[str]:
        found.append(prefix)
        return names(self, prefix)

    monkeypatch.setattr(ObjectFolder, "names", listing)
    return found


def test_a_new_iteration_is_planned_by_one_listing(a, listed):
    check_iteration(a, {**MANIFEST, "iteration": 1}, UNITS, EXAMPLES, False, range(2))
    assert listed == ["iter-001/done/"]


def test_a_resumed_play_lists_the_object_store_once_and_once_to_settle(a, listed):
    listed.clear()
    reopen(a)
    assert listed == ["iter-000/done/"]
    bring(a)
    assert listed == ["iter-000/done/"] * 2


def test_the_bytes_of_units_that_a_node_has_not_are_told_by_one_listing(a, b, listed):
    sizes = [a.unit_bytes(0, [unit]) for unit in range(2)]
    reports = [(a.unit_folder(0, unit) / REPORT).stat().st_size for unit in range(2)]
    listed.clear()
    assert b.unit_bytes(0, [0, 1, 2]) == sum(sizes) - sum(reports)
    assert listed == ["iter-000/done/"]


# --- manifests ----------------------------------------------------------------------------------


def test_another_runs_manifest_is_refused_on_a_new_node(b):
    with pytest.raises(StoreError, match=r"s3://.*iter-000 was played by another run.*seed \("):
        reopen(b, seed=4)
    assert not (b.folder(0) / "manifest.json").exists()


def test_a_manifest_that_is_absent_or_damaged_is_named(a, b, s3):
    s3.write(f"{PREFIX}/manifest.json", b"{")
    with pytest.raises(StoreError, match=r"s3://.*manifest\.json is damaged.*Delete that folder"):
        reopen(b)
    s3.delete(f"{PREFIX}/manifest.json")
    with pytest.raises(StoreError, match=r"s3://.*has units but no manifest\.json"):
        reopen(b)


def test_a_node_whose_folder_is_another_runs_sets_it_aside_and_uploads_none_of_it(a, s3, tmp_path):
    (tmp_path / "c").mkdir()
    shutil.copytree(a.root / "iter-000", tmp_path / "c/iter-000")
    path = tmp_path / "c/iter-000/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 4}))
    before = s3.names()
    c = node(tmp_path, "c")
    c.prepare_node(0)
    assert (tmp_path / "c/iter-000.set-aside-1/units/unit-00000").is_dir()
    assert c.manifest(0) == a.manifest(0)
    assert not c.recover_unit(0, 2)
    assert s3.names() == before


def test_after_a_kill_any_node_may_be_the_first(a, b):
    b.prepare_node(0)
    commit(b, 2, make_rows(3, seed=3))
    reopen(b)  # b is now rank 0's
    bring(b, 3)
    assert plain(list(b.read_unit(0, 2))) == plain(make_rows(3, seed=3))
    assert not list(b.root.glob("*.set-aside*"))


def test_nothing_is_made_on_a_node_before_the_iteration_is_open(s3, tmp_path):
    with pytest.raises(StoreError, match=r"manifest\.json is missing"):
        node(tmp_path, "d").prepare_node(0)


def test_an_opponent_that_another_job_opened_meanwhile_is_found_before_training(a, s3):
    key = f"{PREFIX}/manifest.json"
    s3.write(key, json.dumps({**json.loads(s3.read(key)), "opponent": "other"}).encode())
    with pytest.raises(StoreError, match=r"it differs in opponent"):
        a.select_attempts(0, 2, "")


# --- damage -------------------------------------------------------------------------------------


def damage_object(s3: S3) -> None:
    key = shard_key(s3, 1)
    content = bytearray(s3.read(key))
    content[len(content) // 2] ^= 1
    s3.write(key, bytes(content))


def truncate_object(s3: S3) -> None:
    s3.write(shard_key(s3, 1), s3.read(shard_key(s3, 1))[:-7])


def lose_object(s3: S3) -> None:
    s3.delete(shard_key(s3, 1))


def damage_marker(s3: S3) -> None:
    s3.write(f"{PREFIX}/done/unit-00001-{making(s3, 1)}.json", b'{"files": {}}')


def damage_marker_beyond_ascii(s3: S3) -> None:
    key = f"{PREFIX}/done/unit-00001-{making(s3, 1)}.json"
    s3.write(key, s3.read(key).replace(b'"pairs"', b'"\xf0airs"'))


DAMAGES = [damage_object, truncate_object, lose_object, damage_marker, damage_marker_beyond_ascii]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_named_before_it_is_trained_on(b, s3, damage):
    damage(s3)
    reopen(b)
    with pytest.raises(StoreError) as caught:
        finish_play(b, 0, 2, "Restore it.")
    said = str(caught.value)
    assert f"iter-000/done/unit-00001-{making(s3, 1)}.json is incomplete (" in said
    assert said.endswith("Restore it.")
    assert "\n" not in said
    assert not b.unit_folder(0, 1).exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_repair_makes_a_damaged_object_again(b, s3, damage):
    damage(s3)
    reopen(b, repair=True)
    assert missing_units(b, 0, range(2)) == [1]
    commit(b, 1, make_rows(4, seed=2))
    reopen(b, repair=True)
    bring(b)
    assert plain(list(b.read_unit(0, 1))) == plain(make_rows(4, seed=2))


def test_a_damaged_making_that_was_settled_is_settled_anew_after_repair(a, b, s3):
    bring(a)
    damage_object(s3)
    old = making(s3, 1)
    reopen(b, repair=True)
    commit(b, 1, make_rows(4, seed=2))
    assert b.select_attempts(0, 2, "")[1] != old
    bring(a)
    bring(b)
    assert plain(list(a.read_unit(0, 1))) == plain(make_rows(4, seed=2))


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_damaged_copy_on_a_node_is_brought_again(a, damage):
    damage(a)
    reopen(a)  # no error: the object store's is whole
    bring(a)
    assert plain(list(a.read_unit(0, 1))) == plain(make_rows(4, seed=2))
    assert (a.folder(0) / "set-aside/unit-00001-1").is_dir()


@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_unit_damaged_before_its_upload_is_made_again(a, s3, damage):
    commit(a, 2, make_rows(3, seed=3))
    for unit in (1, 2):
        s3.delete(f"{PREFIX}/done/unit-{unit:05d}-{making(s3, unit)}.json")
    damage(a)  # unit 1
    assert not a.recover_unit(0, 1)
    assert a.recover_unit(0, 2)
    commit(a, 1, make_rows(4, seed=2))
    bring(a, 3)
    assert plain(list(a.read_unit(0, 1))) == plain(make_rows(4, seed=2))


def test_repair_leaves_whole_copies_of_a_node_where_they_are(a):
    for _ in range(2):
        reopen(a, repair=True)
    assert not (a.folder(0) / "set-aside").exists()


def test_a_missing_unit_is_named_with_the_remedy(a):
    with pytest.raises(StoreError, match=r"s3://.*units/unit-00002 is missing\. Do X\."):
        a.select_attempts(0, 3, "Do X.")


def test_a_disk_that_cannot_hold_the_units_is_said_before_they_are_fetched(b, monkeypatch):
    reopen(b)

    class Usage:
        free = 100

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(EnvironmentFailure, match=r"this node lacks .* kB, .* has 100 bytes free"):
        bring(b)
    assert not any((b.folder(0) / "units").iterdir())


# --- what people read ---------------------------------------------------------------------------


def test_the_history_is_published(a, s3):
    (a.root / "iterations.json").write_text("{}")
    a.publish("iterations.json")
    a.publish("absent.json")
    assert s3.read("run/self-play/iterations.json") == b"{}"
    assert "run/self-play/absent.json" not in s3.names()


def test_the_report_of_a_unit_is_that_of_its_maker(a, b):
    reopen(b)
    bring(b)
    assert b.report(0, 0) == make_report(5)
    assert b.unit_bytes(0, [0]) == a.unit_bytes(0, [0])


def test_what_was_played_is_known_on_a_node_that_has_nothing(b: RemoteStore) -> None:
    found = b.find_manifest(0)
    assert found is not None
    assert {**found, **MANIFEST} == found
    assert b.find_manifest(1) is None
    assert not list(b.root.glob("iter-*"))  # asking writes nothing


def test_the_bytes_of_a_unit_whose_marker_is_damaged_are_not_guessed(b, s3):
    damage_marker(s3)
    reopen(b)
    assert b.unit_bytes(0, [0]) > 0
    with pytest.raises(StoreError, match=r"-.* is incomplete \(its marker is damaged\)\. Do X\."):
        b.unit_bytes(0, [0, 1], "Do X.")


def test_a_damaged_word_on_what_is_trained_on_is_named(a, s3):
    bring(a)
    key = f"{PREFIX}/complete.json"
    s3.write(key, s3.read(key).replace(b'"units"', b'"stinu"'))
    with pytest.raises(StoreError, match=r"complete\.json is damaged, so nothing says .* Do X\."):
        bring(a)


def test_a_manifest_that_is_gone_is_missing_and_not_another(a, s3):
    s3.delete(f"{PREFIX}/manifest.json")
    with pytest.raises(StoreError, match=r"manifest\.json is missing\. Do X\."):
        bring(a)
