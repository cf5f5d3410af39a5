"""Names of Streaming's shared memory: no two programs on a machine use the same."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from fixtures.processes import forkserver
from fixtures.yaml_run import launch, tiny_config, write_config

from spin_composer.errors import EnvironmentFailure
from spin_composer.shared_memory import use_unique_names

NUM_PROGRAMS, NUM_DATASETS = 4, 6


def _program(folder: Path, number: int, together: Any, answers: Any) -> None:
    """Make data sets at the same moments as the other programs; send the names and rows."""
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.shared import prefix

    # As a program of its own, and not a part of the test's run.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        os.environ.pop(name, None)
    use_unique_names()
    if number == NUM_PROGRAMS:  # a job that is not ours: it counts from 0
        prefix._each_prefix_int = itertools.count
    names, rows, kept = [], [], []
    try:
        for i in range(NUM_DATASETS):
            local = str(folder / f"{number}-{i}")
            with MDSWriter(out=local, columns={"x": "int"}) as writer:
                for j in range(4):
                    writer.write({"x": 1000 * number + 10 * i + j})
            together.wait(600)
            kept.append(StreamingDataset(local=local, batch_size=1))
            names.append(kept[-1]._shm_prefix_int)
            rows.append(sorted(int(row["x"]) for row in kept[-1]))
        answers.put((number, names, rows, ""))
    except BaseException as error:
        together.abort()
        answers.put((number, names, rows, repr(error)))


def test_programs_that_make_data_sets_at_the_same_moment_do_not_meet(tmp_path: Path) -> None:
    context = forkserver()
    answers = context.Queue()
    together = context.Barrier(NUM_PROGRAMS + 1)
    programs = [
        context.Process(target=_program, args=(tmp_path, number, together, answers))
        for number in range(NUM_PROGRAMS + 1)
    ]
    for program in programs:
        program.start()
    found = sorted(answers.get(timeout=900) for _ in programs)
    for program in programs:
        program.join()
    assert [error for *_, error in found] == [""] * len(programs)
    names = [name for _, names, _, _ in found for name in names]
    assert len(set(names)) == len(names) == (NUM_PROGRAMS + 1) * NUM_DATASETS
    # Streaming's own cleaning ends at a million; ours begin there.
    assert min(
        name for number, names, _, _ in found for name in names if number < NUM_PROGRAMS
    ) >= (10**6)
    for number, _, rows, _ in found:
        assert rows == [[1000 * number + 10 * i + j for j in range(4)] for i in range(NUM_DATASETS)]


def test_another_streaming_is_an_error_and_not_a_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    from streaming.base.shared import prefix

    monkeypatch.delattr(prefix, "_each_prefix_int")
    with pytest.raises(EnvironmentFailure, match=r"names its shared memory in another way"):
        use_unique_names()


@pytest.mark.foundry
@pytest.mark.slow
def test_four_runs_at_once_of_six_iterations_end_well(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    paths = []
    for i in range(4):
        folder = tmp_path / f"run-{i}"
        config = tiny_config(folder, run_name=f"run-{i}", max_duration="6iter")
        paths.append(write_config(config, folder / "run.yaml"))
    with ThreadPoolExecutor(4) as pool:
        ends = list(
            pool.map(
                lambda item: launch(
                    "spin-composer",
                    "train",
                    str(item[1]),
                    ranks=1,
                    MASTER_PORT=str(29600 + item[0]),
                ),
                enumerate(paths),
            )
        )
    assert [end.returncode for end in ends] == [0] * 4, [end.stderr[-500:] for end in ends]
