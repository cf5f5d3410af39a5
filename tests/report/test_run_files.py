from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.reported_run import process, write_run

from spin_composer.errors import StoreError
from spin_composer.report.outline import RunOutline
from spin_composer.report.run_files import read_run


def test_a_run_is_done_when_its_last_iteration_is(tmp_path: Path) -> None:
    assert not read_run(RunOutline(write_run(tmp_path / "a", iterations=2))).is_done
    assert read_run(RunOutline(write_run(tmp_path / "b", iterations=3))).is_done


def test_a_run_that_ends_but_lives_is_not_done(tmp_path: Path) -> None:
    store = write_run(tmp_path, iterations=3)
    (store / "run.lock").write_text('{"run": "try", "pid": 1, "host": "x"}')
    assert not read_run(RunOutline(store)).is_done


def test_a_run_without_its_own_record_is_never_known_to_be_done(tmp_path: Path) -> None:
    store = write_run(tmp_path, iterations=3, processes=[])
    (store / "run.json").unlink()
    assert not read_run(RunOutline(store)).is_done


def test_checkpoints_are_found_where_the_run_says(tmp_path: Path) -> None:
    made = process(folder=str(tmp_path), save_folder="ck", save_filename="ep{epoch}-ba{batch}.pt")
    store = write_run(tmp_path / "store", processes=[made])
    assert read_run(RunOutline(store)).status.outline.save_folder is None  # on another machine
    (tmp_path / "ck").mkdir()
    outline = read_run(RunOutline(store)).status.outline
    assert outline.save_folder == tmp_path / "ck"
    assert outline.names[0] == "ep{epoch}-ba{batch}.pt"
    assert (outline.epochs, outline.iterations) == (2, 3)


def test_a_run_that_has_trained_nothing_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"iterations\.json does not exist"):
        read_run(RunOutline(tmp_path))


def test_a_damaged_judges_result_is_named(tmp_path: Path) -> None:
    store = write_run(tmp_path)
    (store / "judge.json").write_text('{"models": 3}')
    with pytest.raises(StoreError, match=r"judge\.json is damaged"):
        read_run(RunOutline(store))
