"""A unit on disk: nothing stays of one that failed, and reports of earlier versions are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spin_composer.data.pairs import LENGTH, STOP
from spin_composer.pair_kinds import PairKind
from spin_composer.store.durable import dump_hashed, load_hashed
from spin_composer.store.layout import INDEX, REPORT
from spin_composer.store.unit import (
    read_pairs,
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


VERSION_2 = [
    "finish", "generated", "index", "opponent_generated", "opponent_real", "prompt", "real",
]  # fmt: skip


def columns(folder: Path) -> list[str]:
    (shard,) = json.loads((folder / INDEX).read_text())["shards"]
    return shard["column_names"]


def test_a_unit_whose_pairs_are_all_real_over_newest_is_that_of_version_2(tmp_path: Path) -> None:
    write_unit(tmp_path / "unit", make_rows(3), make_report(3))
    assert columns(tmp_path / "unit") == VERSION_2
    for pair in read_pairs(tmp_path / "unit"):
        assert (pair.kind, pair.finish_better) == (PairKind.NEWEST, STOP)


def test_a_kind_and_why_both_sides_ended_are_read_as_they_were_written(tmp_path: Path) -> None:
    kinds = [PairKind.EARLIER, PairKind.BETWEEN, PairKind.NEWEST]
    rows = [
        replace(row, kind=kind, finish_better=LENGTH if kind is PairKind.BETWEEN else STOP)
        for row, kind in zip(make_rows(3), kinds, strict=True)
    ]
    write_unit(tmp_path / "unit", rows, make_report(3))
    assert columns(tmp_path / "unit") == sorted([*VERSION_2, "kind", "finish_better"])
    found = list(read_pairs(tmp_path / "unit"))
    for name in ("kind", "finish_better", "finish", "index", "opponent_real"):
        assert [getattr(x, name) for x in found] == [getattr(x, name) for x in rows]
    assert all(isinstance(pair.kind, PairKind) for pair in found)
