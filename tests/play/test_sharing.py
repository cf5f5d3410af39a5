"""Work shared between ranks: each piece once, a failure or a death known to all, no timeouts."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
from fixtures.processes import until
from fixtures.ranks import on_ranks

from spin_composer.distributed import from_rank_zero, on_all_ranks
from spin_composer.errors import EnvironmentFailure, StoreError
from spin_composer.play import sharing
from spin_composer.play.sharing import SharedWork, on_every_node


def test_alone_a_process_does_every_piece_in_order() -> None:
    done: list[int] = []
    beats: list[int] = []
    with SharedWork(3, lambda: beats.append(len(done))) as work:
        for piece in work.claims():
            done.append(piece)
            work.done()
        work.wait()
    assert done == [0, 1, 2]
    assert beats == [1, 2, 3, 3]


def claim_all(rank: int) -> list[int]:
    with SharedWork(12) as work:
        mine = []
        for piece in work.claims():
            if rank == 1:  # so slow that the other does the rest
                work._store.set("slow one has a piece", "")
                until(lambda: work._store.add(f"{work._key}/done", 0) == 11)
            else:
                work._store.wait(["slow one has a piece"])
            mine.append(piece)
            work.done()
        work.wait()
    return mine


def test_each_piece_is_done_once_and_a_slow_rank_does_fewer() -> None:
    found = on_ranks(claim_all)
    assert sorted(found[0] + found[1]) == list(range(12))
    assert (len(found[0]), len(found[1])) == (11, 1)


def wait_long(rank: int) -> Any:
    # Longer than the process group's timeout of 4 s: rank 0's word, a slow piece, a slow node.
    word = from_rank_zero(lambda: time.sleep(6) or {"x": 1})
    with SharedWork(2) as work:
        for _ in work.claims():
            if rank == 0:
                time.sleep(6)
            work.done()
        work.wait()
    on_every_node(lambda: time.sleep(6 * rank))
    return word


def test_no_timeout_of_the_process_group_ends_a_wait() -> None:
    assert on_ranks(wait_long) == {0: {"x": 1}, 1: {"x": 1}}


def fail_on_rank_one(rank: int) -> None:
    with SharedWork(4) as work:
        for _ in work.claims():
            if rank == 1:
                raise StoreError("unit 3 is damaged. Delete it.")
            until(work.check)  # until it raises
        work.wait()


def test_a_failing_rank_ends_the_others_with_its_words_and_code() -> None:
    found = on_ranks(fail_on_rank_one)
    assert found[1] == ("StoreError", "unit 3 is damaged. Delete it.", 3)
    kind, said, code = found[0]
    assert (kind, code) == ("StoreError", 3)
    assert said == "rank 1 failed in play: unit 3 is damaged. Delete it."


def fail_on_a_node(rank: int) -> None:
    def make() -> None:
        if rank == 1:
            raise EnvironmentFailure("the disk of gpu7 is full. Free space.")

    on_every_node(make)


def test_a_failing_node_ends_the_others() -> None:
    found = on_ranks(fail_on_a_node)
    assert found[0] == (
        "EnvironmentFailure", "rank 1 failed in play: the disk of gpu7 is full. Free space.", 4
    )  # fmt: skip


def die(rank: int) -> None:
    sharing.HEARTBEAT_TIMEOUT_SECONDS = 2.0  # of this rank's process
    with SharedWork(2) as work:
        for _ in work.claims():
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            until(work.check)  # until it raises; the other gets the other piece
        work.wait()


def test_a_rank_that_died_is_noticed_by_its_silence() -> None:
    kind, said, code = on_ranks(die, wanted=1)[0]
    assert (kind, code) == ("EnvironmentFailure", 4)
    assert said.startswith("rank 1 has not reported for 2 s in play: its process or its machine is")
    assert "the run resumes" in said


def die_on_rank_zero(rank: int) -> None:
    with SharedWork(2) as work:
        for _ in work.claims():
            if rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            until(work.check)
        work.wait()


def test_the_death_of_rank_zero_is_the_environments_failure() -> None:
    _, said, code = on_ranks(die_on_rank_zero, wanted=1)[1]
    assert code == 4, said


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("odd")
        self.lock = threading.Lock()


def raise_what_cannot_travel(rank: int) -> None:
    def make() -> None:
        raise Unpicklable

    from_rank_zero(make)


def test_an_error_that_cannot_be_sent_is_known_to_all_ranks() -> None:
    found = on_ranks(raise_what_cannot_travel)
    assert found[0][0] == "Unpicklable"
    assert found[1] == ("RuntimeError", "rank 0 failed: Unpicklable('odd')", 1)


def make_on_one_rank_only(rank: int) -> str:
    def make() -> str:
        if rank == 1:
            raise EnvironmentFailure("gpu7 cannot be reached. Set a host.")
        return "made"

    return on_all_ranks(make)


def test_what_one_rank_cannot_make_ends_the_others_at_once() -> None:
    found = on_ranks(make_on_one_rank_only)
    said = "gpu7 cannot be reached. Set a host."
    assert found[1] == ("EnvironmentFailure", said, 4)
    assert found[0] == ("EnvironmentFailure", f"rank 1 failed: {said}", 4)
    assert on_all_ranks(lambda: "made") == "made"  # alone


def slow_but_alive(rank: int) -> bool:
    sharing.HEARTBEAT_TIMEOUT_SECONDS = 6.0
    with SharedWork(1) as work:
        for _ in work.claims():
            time.sleep(8)
            work.done()
        work.wait()
    return True


def test_a_rank_that_takes_long_is_not_taken_for_dead() -> None:
    assert on_ranks(slow_but_alive) == {0: True, 1: True}


@pytest.mark.parametrize("error", [StoreError("a"), EnvironmentFailure("b")])
def test_what_rank_zero_raises_alone_is_raised_as_it_is(error: Exception) -> None:
    def make() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        from_rank_zero(make)


def broken_heart(rank: int) -> None:
    def fail() -> None:
        raise TypeError("a defect")

    with SharedWork(2, fail if rank == 0 else None) as work:
        for _ in work.claims():
            until(work.check)  # until the heart has told


def test_a_heart_that_stops_by_a_defect_ends_all_ranks() -> None:
    for kind, said, code in on_ranks(broken_heart).values():
        assert (kind, code) == ("RuntimeError", 1)
        assert said == "rank 0 failed in play: a defect"
