"""The lock of a store in an object store: one run at a time, and a dead one's is taken over."""

from __future__ import annotations

import json
import threading

import pytest
from fixtures.processes import until
from fixtures.s3 import BUCKET, s3_server

from spin_composer.errors import StoreError
from spin_composer.store import lock as lock_module
from spin_composer.store import object_lock
from spin_composer.store.lock import StoreLock, this_process
from spin_composer.store.object_folder import ObjectFolder
from spin_composer.store.object_lock import LockObject

KEY = "run/run.lock"


@pytest.fixture
def s3(monkeypatch):
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What a lock waits for is short here."""
    monkeypatch.setattr(object_lock, "PROPAGATION_SECONDS", 0.2)
    monkeypatch.setattr(lock_module, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.1)


def lock() -> StoreLock:
    return StoreLock(LockObject(ObjectFolder(f"s3://{BUCKET}/run")))


def write_lock(s3, **owner: object) -> None:
    content = {**this_process(), "run": "other", "token": "t", "machine": "elsewhere", **owner}
    s3.write(KEY, json.dumps(content).encode())


def test_a_lock_is_taken_touched_and_given_back(s3):
    one = lock()
    one.acquire("first")
    assert json.loads(s3.read(KEY))["run"] == "first"
    before = s3.read("run/run.beat")
    until(lambda: s3.read("run/run.beat") != before)
    one.check()
    one.release()
    assert s3.read(KEY) == b""
    again = lock()
    again.acquire("second")
    again.release()


def test_another_machines_live_lock_is_refused(s3, monkeypatch):
    monkeypatch.setattr(lock_module, "LEASE_SECONDS", 20.0)
    write_lock(s3, host="gpu7")
    stop = threading.Event()

    def beat() -> None:
        place = LockObject(ObjectFolder(f"s3://{BUCKET}/run"))
        while not stop.wait(0.1):
            place.touch()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(StoreError, match=r"s3://bucket/run is in use by run 'other'.*gpu7"):
            lock().acquire("second")
    finally:
        stop.set()
        thread.join()


def test_a_dead_machines_lock_is_taken_over(s3):
    write_lock(s3)
    one = lock()
    one.acquire("second")
    assert json.loads(s3.read(KEY))["run"] == "second"
    one.release()


def test_of_two_that_take_a_free_lock_at_once_one_has_it(s3, monkeypatch):
    monkeypatch.setattr(object_lock, "PROPAGATION_SECONDS", 1.0)
    outcomes: list[str] = []

    def take(name: str) -> None:
        place = LockObject(ObjectFolder(f"s3://{BUCKET}/run"))
        outcomes.append(f"{name} {place.create(name)}")

    threads = [threading.Thread(target=take, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = s3.read(KEY).decode()
    assert sorted(o for o in outcomes if o.endswith("True")) == [f"{winner} True"]


def test_a_lost_lock_is_noticed_and_left_to_its_owner(s3):
    one = lock()
    one.acquire("suspended")
    write_lock(s3)
    with pytest.raises(StoreError, match="taken over by another run"):
        until(one.check)
    one.release()
    assert json.loads(s3.read(KEY))["run"] == "other"
