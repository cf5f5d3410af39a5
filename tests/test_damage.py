"""Whole runs on damaged stores and bad machines: found before training, one line, exit code."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from fixtures.processes import forkserver
from fixtures.runs import tiny_trainer
from test_resume import weights

from spin_composer.errors import EnvironmentFailure, StoreError, explain
from spin_composer.store import durable
from spin_composer.store.lock import LockFile, StoreLock

CHECKPOINTS = {"save_interval": "3ba", "save_filename": "ep{epoch}-ba{batch}.pt"}


def trainer(folder: Path, repair: bool = False, **overrides):
    saving = {"save_folder": str(folder / "checkpoints"), "autoresume": True, **CHECKPOINTS}
    return tiny_trainer(folder, spin={"repair": repair}, **{**saving, **overrides})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices are slower on several threads, by much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's folder and weights."""
    folder = tmp_path_factory.mktemp("finished")
    run = trainer(folder)
    run.fit()
    return folder, weights(run)


@pytest.fixture
def copy(finished, tmp_path):
    """Return a function that gives the finished run as it was when ``name`` was its last save."""

    def at(name: str, iterations: int) -> Path:
        shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints", symlinks=True)
        for k in range(iterations):
            shutil.copytree(finished[0] / f"self-play/iter-{k:03d}", iteration(tmp_path, k))
        batch = int(name.split("ba")[1].removesuffix(".pt"))
        for path in (tmp_path / "checkpoints").glob("ep*.pt"):
            if int(path.stem.split("ba")[1]) > batch:
                path.unlink()
        return tmp_path

    return at


def iteration(folder: Path, k: int) -> Path:
    return folder / f"self-play/iter-{k:03d}"


def flip_a_byte(folder: Path, k: int, unit: int) -> Path:
    path = next((iteration(folder, k) / f"units/unit-{unit:05d}").glob("shard.*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def assert_same(run, wanted) -> None:
    for name, value in weights(run).items():
        assert torch.equal(value, wanted[name]), name


def test_damage_at_an_iterations_start_stops_and_repair_makes_it_again(finished, copy):
    folder = copy("ep2-ba12.pt", iterations=2)
    path = flip_a_byte(folder, 1, 2)
    with pytest.raises(StoreError) as caught:
        trainer(folder).fit()
    assert str(path) in str(caught.value)
    assert "algorithms.spin.repair=true" in str(caught.value)
    run = trainer(folder, repair=True)
    run.fit()
    assert (iteration(folder, 1) / "set-aside/unit-00002-1").is_dir()
    assert_same(run, finished[1])


def test_damage_in_training_names_the_way_back_and_the_way_works(finished, copy):
    folder = copy("ep3-ba27.pt", iterations=2)
    flip_a_byte(folder, 1, 2)
    for repair in (False, True):  # the opponent is gone, so repair cannot help here
        with pytest.raises(StoreError) as caught:
            trainer(folder, repair=repair).fit()
        said = str(caught.value)
        assert "move all checkpoints after epoch 2 out of save_folder" in said
        assert "\n" not in said
        assert explain(caught.value) == (3, said)
    for path in (folder / "checkpoints").glob("ep*.pt"):
        if int(path.stem.split("ba")[1]) > 12:
            path.rename(folder / path.name)
    run = trainer(folder, repair=True)
    run.fit()
    assert_same(run, finished[1])


def test_a_missing_unit_and_a_missing_manifest_stop_training(copy):
    folder = copy("ep3-ba27.pt", iterations=2)
    shutil.rmtree(iteration(folder, 1) / "units/unit-00004")
    with pytest.raises(StoreError, match=r"unit-00004 is missing\. The opponent"):
        trainer(folder).fit()
    (iteration(folder, 1) / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"manifest\.json is missing.*Restore"):
        trainer(folder).fit()


def test_another_settings_store_stops_training(copy):
    folder = copy("ep3-ba27.pt", iterations=2)
    spin = {"generation": {"max_new_tokens": 12, "batch_size": 4, "temperature": 0.5}}
    other = tiny_trainer(folder, spin=spin, load_path=str(folder / "checkpoints/ep3-ba27.pt"))
    with pytest.raises(StoreError, match=r"another run; it differs in generation"):
        other.fit()


def test_replayed_units_that_are_damaged_stop_play(copy):
    folder = copy("ep2-ba12.pt", iterations=1)
    path = flip_a_byte(folder, 0, 3)
    with pytest.raises(StoreError, match="It is replayed, and the opponent") as caught:
        trainer(folder, repair=True).fit()
    assert str(path) in str(caught.value)


def hold(root: Path, ready) -> None:
    StoreLock(LockFile(root)).acquire("another")
    ready.set()
    time.sleep(600)


def test_a_store_in_use_is_refused_before_any_checkpoint_is_touched(finished, copy):
    folder = copy("ep3-ba27.pt", iterations=2)
    partial = folder / "checkpoints/ep3-ba30.pt"
    partial.write_bytes(b"PK\3\4 being written")
    context = forkserver()
    ready = context.Event()
    process = context.Process(target=hold, args=(folder / "self-play", ready), daemon=True)
    process.start()
    assert ready.wait(600)
    try:
        with pytest.raises(StoreError, match="in use by run 'another'"):
            trainer(folder)
        assert partial.exists()
    finally:
        process.kill()
        process.join()
    trainer(folder).fit()
    assert (folder / "checkpoints/ep3-ba30.pt.set-aside-1").exists()


def test_a_full_disk_in_play_exits_4_and_the_next_start_goes_on(finished, tmp_path, monkeypatch):
    write = durable.write_atomically
    units = []

    def full(path: Path, text: str) -> None:
        if path.name == "unit.json" and len(units) == 3:
            with open("/dev/full", "w") as file:
                file.write(text)
        units.extend([path] * (path.name == "unit.json"))
        write(path, text)

    monkeypatch.setattr("spin_composer.store.unit.write_atomically", full)
    with pytest.raises(OSError, match="No space left") as caught:
        trainer(tmp_path).fit()
    assert explain(caught.value)[0] == 4  # pyright: ignore[reportOptionalSubscript]
    monkeypatch.undo()
    run = trainer(tmp_path)
    run.fit()
    assert_same(run, finished[1])


def test_too_small_a_disk_is_refused_before_play(tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(EnvironmentFailure, match=r"take up to .* and .* has .* free"):
        trainer(tmp_path).fit()
    assert not iteration(tmp_path, 0).exists()


def test_a_file_in_the_stores_place_is_refused_before_the_model_trains(tmp_path):
    (tmp_path / "self-play").touch()
    with pytest.raises(EnvironmentFailure, match="is a file"):
        trainer(tmp_path)
