"""The lock: one run at a time on a store, and a crashed one's successor takes it over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from fixtures.processes import forkserver, until

from spin_composer.errors import EnvironmentFailure, StoreError
from spin_composer.play.sharing import SharedWork
from spin_composer.store import lock as lock_module
from spin_composer.store.layout import LOCK
from spin_composer.store.lock import LockFile, StoreLock, this_process


def write_lock(root: Path, **owner: object) -> Path:
    root.mkdir(exist_ok=True)
    path = root / LOCK
    path.write_text(json.dumps({**this_process(), "run": "other", "token": "t", **owner}))
    return path


def started(pid: int | str) -> str:
    """Return a process's start in ticks since boot, as locks hold it and /proc/PID/stat has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@pytest.fixture
def lease(monkeypatch):
    """Sets how long another machine's lock is watched."""
    return lambda seconds: monkeypatch.setattr(lock_module, "LEASE_SECONDS", seconds)


@pytest.fixture
def quick_beat(monkeypatch):
    """Locks are touched often enough for a test to see it."""
    monkeypatch.setattr(lock_module, "HEARTBEAT_SECONDS", 0.05)


def hold(root: Path, ready) -> None:
    StoreLock(LockFile(root)).acquire("first")
    ready.set()
    time.sleep(600)


@pytest.fixture
def other_run(tmp_path):
    """Another process that holds the lock of ``tmp_path``; its id."""
    context = forkserver()
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready), daemon=True)
    process.start()
    assert ready.wait(600)
    yield process
    process.kill()
    process.join()


def test_a_second_run_is_refused_by_name_and_with_a_remedy(tmp_path, other_run):
    with pytest.raises(StoreError) as caught:
        StoreLock(LockFile(tmp_path)).acquire("second")
    said = str(caught.value)
    assert f"in use by run 'first' (process {other_run.pid} on " in said
    assert "Wait for that run or stop it" in said
    assert "\n" not in said


def test_a_killed_runs_lock_is_taken_over_at_once(tmp_path, lease, other_run):
    lease(600)
    os.kill(other_run.pid, signal.SIGKILL)
    other_run.join()
    lock = StoreLock(LockFile(tmp_path))
    lock.acquire("second")
    assert json.loads((tmp_path / LOCK).read_text())["run"] == "second"
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_id_used_again_is_not_the_owner(tmp_path):
    write_lock(tmp_path, pid=os.getppid(), started="1")
    StoreLock(LockFile(tmp_path)).acquire("second")


def test_a_process_is_identified_as_the_former_version_did():
    assert this_process()["started"] == started("self")


def test_a_lock_of_a_running_process_is_its_own_as_long_as_nothing_tells_it_is_not(
    tmp_path, other_run
):
    write_lock(tmp_path, pid=other_run.pid, started=None)
    with pytest.raises(StoreError, match="in use by run 'other'"):
        StoreLock(LockFile(tmp_path)).acquire("second")


def test_a_zombie_holds_no_lock(tmp_path, lease):
    lease(600)
    owner = subprocess.Popen(["sleep", "600"])
    write_lock(tmp_path, pid=owner.pid, started=started(owner.pid))
    with pytest.raises(StoreError, match="in use by run 'other'"):
        StoreLock(LockFile(tmp_path)).acquire("second")
    owner.kill()
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet reaped
    assert started(owner.pid)
    StoreLock(LockFile(tmp_path)).acquire("third")
    owner.wait()


@pytest.mark.parametrize("pid", [-5, 2**22 + 1, 2**70])
def test_an_id_that_no_process_has_is_a_dead_owners(tmp_path, lease, pid):
    lease(600)
    write_lock(tmp_path, pid=pid)
    StoreLock(LockFile(tmp_path)).acquire("second")


def test_the_same_process_id_in_another_container_is_another_machines(tmp_path, lease):
    lease(30)
    boot_id = this_process()["machine"].split()[0]
    path = write_lock(tmp_path, machine=f"{boot_id} pid:[1]")
    timer = threading.Timer(0.3, os.utime, [path])
    timer.start()
    with pytest.raises(StoreError, match="in use by run 'other'"):
        StoreLock(LockFile(tmp_path)).acquire("second")


def test_setting_the_clock_does_not_change_who_a_process_is(tmp_path, monkeypatch):
    before, booted = this_process(), psutil.boot_time()
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    (tmp_path / "stat").write_text(f"btime {booted + 3600:.0f}\n")  # the kernel's, an hour later
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert psutil.boot_time() == booted + 3600
    assert this_process() == before


def test_another_machines_lock_that_nobody_touches_is_taken_over(tmp_path, lease):
    lease(0.3)
    write_lock(tmp_path, machine="elsewhere", host="elsewhere")
    StoreLock(LockFile(tmp_path)).acquire("second")
    assert json.loads((tmp_path / LOCK).read_text())["run"] == "second"


def test_another_machines_lock_that_is_touched_is_refused(tmp_path, lease):
    lease(30)
    path = write_lock(tmp_path, machine="elsewhere", host="elsewhere")
    timer = threading.Timer(0.3, os.utime, [path])
    timer.start()
    with pytest.raises(StoreError, match=r"in use by run 'other' .*on elsewhere"):
        StoreLock(LockFile(tmp_path)).acquire("second")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_an_unreadable_lock_is_watched_and_taken_over(tmp_path, lease, text):
    lease(0.3)
    (tmp_path / LOCK).write_text(text)
    StoreLock(LockFile(tmp_path)).acquire("second")


def test_of_two_successors_one_gets_the_lock(tmp_path, lease):
    lease(0.2)
    # Both judge the same dead owner; the slower one must not throw out the quicker one.
    write_lock(tmp_path, machine="elsewhere")
    dead = (tmp_path / LOCK).read_text()
    quick, slow = StoreLock(LockFile(tmp_path)), StoreLock(LockFile(tmp_path))
    quick.acquire("quick")
    slow.backend.remove(dead)
    assert json.loads((tmp_path / LOCK).read_text())["run"] == "quick"


def test_the_same_process_may_begin_again(tmp_path):
    StoreLock(LockFile(tmp_path)).acquire("first try, which failed")
    again = StoreLock(LockFile(tmp_path))
    again.acquire("second try")
    again.acquire("second try")
    again.check()


def test_a_lost_lock_is_noticed(tmp_path, quick_beat):
    lock = StoreLock(LockFile(tmp_path))
    lock.acquire("suspended")
    lock.check()
    write_lock(tmp_path, machine="elsewhere")
    with pytest.raises(StoreError, match="taken over by another run"):
        until(lock.check)
    lock.release()
    assert (tmp_path / LOCK).exists()  # the other run's


def test_the_lock_is_touched_while_it_is_held(tmp_path, quick_beat):
    lock = StoreLock(LockFile(tmp_path))
    lock.acquire("run")
    path = tmp_path / LOCK
    os.utime(path, ns=(0, 0))
    until(lambda: path.stat().st_mtime > 0)
    lock.release()


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "store").touch()
    with pytest.raises(EnvironmentFailure, match=r"store is a file. Set algorithms.spin.store"):
        StoreLock(LockFile(tmp_path / "store")).acquire("run")


def test_a_heartbeat_that_ends_by_a_defect_is_told(tmp_path, quick_beat, monkeypatch):
    lock = StoreLock(LockFile(tmp_path))
    lock.acquire("run")

    def broken() -> None:
        raise TypeError("a defect")

    monkeypatch.setattr(lock.backend, "touch", broken)
    with pytest.raises(RuntimeError, match="is not touched any more"):
        until(lock.check)
    lock.release()


def test_play_notices_that_the_lock_is_anothers(tmp_path, quick_beat):
    one = StoreLock(LockFile(tmp_path / "one"))
    one.acquire("suspended")
    with SharedWork(1, lambda *_: one.check()) as work:
        next(work.claims())
        work.check()
        write_lock(tmp_path / "one", machine="elsewhere")
        with pytest.raises(StoreError, match="taken over by another run"):
            until(work.check)  # until the heart has looked
    one.release()
