from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.reported_run import sample

from spin_composer.errors import StoreError
from spin_composer.report.samples import COLUMNS, as_jsonl, as_rows, parse_samples, read_samples


@pytest.mark.parametrize("trained", [True, False])
def test_samples_are_read_as_they_are_written(trained: bool) -> None:
    rows = [sample(index=i, trained=trained) for i in range(3)]
    found = parse_samples(as_jsonl(rows), "samples.jsonl")
    assert as_jsonl(found) == as_jsonl(rows)
    assert [one.margin() for one in found] == [one.margin() for one in rows]


def test_a_table_of_an_older_version_has_no_tokens() -> None:
    (found,) = parse_samples(as_jsonl([sample()], with_tokens=False), "samples.jsonl")
    assert found.real_tokens is None
    assert found.margin() is None


def test_loggers_get_texts_alone() -> None:
    assert COLUMNS == ["iteration", "index", "prompt", "real", "generated", "finish"]
    assert as_rows([sample()]) == [[0, 0, "say blue:", "blue.", "not blue.", "stop"]]


@pytest.mark.parametrize(
    "change",
    [lambda line: line[:-20], lambda line: line.replace('"policy": [-', '"policy": [0, -'),
     lambda line: line.replace('"finish"', '"end"')],
)  # fmt: skip
def test_a_damaged_line_is_named(change) -> None:
    good = as_jsonl([sample()])
    with pytest.raises(StoreError, match=r"^samples\.jsonl, line 2, is damaged"):
        parse_samples(good + change(good.strip()) + "\n", "samples.jsonl")


def test_all_iterations_are_read_in_order(tmp_path: Path) -> None:
    for k in (1, 0):
        (tmp_path / f"iter-00{k}").mkdir()
        (tmp_path / f"iter-00{k}/samples.jsonl").write_text(as_jsonl([sample(k)]))
    assert [one.iteration for one in read_samples(tmp_path)] == [0, 1]
