"""A unit on disk: nothing stays of one that failed, and reports of earlier versions are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from spin_composer.store.durable import dump_hashed, load_hashed
from spin_composer.store.layout import REPORT
from spin_composer.store.unit import (
    read_report,
    staging_folder,
    unit_files,
    unit_problem,
    write_unit,
)
from tests.store.test_local import make_report, make_rows


def test_what_was_written_aside_is_gone_after_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with staging_folder(tmp_path / "unit-00000") as aside:
            write_unit(aside, make_rows(3), make_report(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not any(tmp_path.iterdir())


def test_a_unit_lists_each_of_its_files_but_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "unit-00000"
    write_unit(folder, make_rows(3), make_report(3))
    files = unit_files((folder / REPORT).read_text())
    assert {*files, REPORT} == {path.name for path in folder.iterdir()}
    assert {name: file["bytes"] for name, file in files.items()} == {
        name: (folder / name).stat().st_size for name in files
    }


def test_the_engines_gap_has_its_first_name_in_the_file_which_every_version_reads(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "unit-00000"
    report = replace(make_report(3), logprob_gap=0.25)
    write_unit(folder, make_rows(3), report)
    assert load_hashed((folder / REPORT).read_text())["server_gap"] == 0.25
    assert read_report(folder) == report


def test_a_report_without_later_figures_is_read_and_its_unit_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "unit-00000"
    write_unit(folder, make_rows(3), make_report(3))
    content = load_hashed((folder / REPORT).read_text())
    for later in ("began", "ended", "server_gap"):
        del content[later]
    (folder / REPORT).write_text(dump_hashed(content))
    assert read_report(folder) == make_report(3)
    assert unit_problem(folder) is None
