"""The file of a run's figures step by step, and what reports make of it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import StoreError
from spin_composer.report.curves import draw
from spin_composer.report.history import ACCURACY, BATCHES, ITERATION, LOSS, RunHistory
from spin_composer.report.steps import (
    LEARNING_RATE,
    TOKENS_PER_SECOND,
    StepRow,
    curve,
    iteration_borders,
    iteration_so_far,
    parse_row,
    parse_steps,
    read_steps,
)
from spin_composer.report.table import print_table

BASE = {"metrics/eval/LanguageCrossEntropy": 2.5}
PLAY = {"spin/generated_length": 17.0, "spin/pairs": 8.0}
HISTORY = RunHistory({"eval/eval/LanguageCrossEntropy": 2.5}, [{"iteration": 0, "batches": 2}])


def trained(step: int, iteration: int, accuracy: float, **more: float) -> StepRow:
    values = {LEARNING_RATE: 1e-3, TOKENS_PER_SECOND: 50.0, LOSS: 0.5}
    return StepRow(
        step, iteration, step // 2, 1.5, {**values, "metrics/train/SpinAccuracy": accuracy, **more}
    )


ROWS = [
    StepRow(0, 0, 0, 1.0, BASE),
    trained(1, 0, 0.5, **PLAY),
    trained(2, 0, 0.75),
    StepRow(2, 0, 1, 2.0, {"metrics/eval/LanguageCrossEntropy": 2.25}),
    trained(3, 1, 0.25, **PLAY),
    trained(4, 1, 0.75),
]
TEXT = "".join(row.as_json() for row in ROWS)


def test_a_row_is_read_as_it_was_written():
    row = trained(7, 1, 0.1, odd=1 / 3)
    assert parse_row(row.as_json()) == row


def test_what_is_no_number_is_null_in_the_file_and_nan_to_readers():
    line = StepRow(1, 0, 0, 1.0, {"a": math.nan, "b": math.inf}).as_json()
    assert "NaN" not in line
    assert "Infinity" not in line
    assert all(math.isnan(value) for value in parse_row(line).values.values())


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_last_line_that_is_cut_short_is_left_out(cut):
    found = parse_steps(TEXT[:-cut], "steps.jsonl")
    assert found == (ROWS if cut == 1 else ROWS[:-1])


@pytest.mark.parametrize("line", ["{", "[1]", "7", "{}", '{"step": 1, "iteration": null}'])
def test_another_damaged_line_is_named(line):
    lines = TEXT.splitlines(keepends=True)
    text = "".join([*lines[:2], line + "\n", *lines[2:]])
    with pytest.raises(StoreError, match=r"^steps.jsonl, line 3, is damaged"):
        parse_steps(text, "steps.jsonl")


def test_a_store_of_an_older_version_has_no_steps(tmp_path):
    assert read_steps(tmp_path) == []


def test_a_curve_has_the_steps_that_have_the_figure():
    assert curve(ROWS, "metrics/eval/LanguageCrossEntropy") == [(0, 2.5), (2, 2.25)]
    assert curve(ROWS, "spin/generated_length") == [(1, 17.0), (3, 17.0)]
    assert iteration_borders(ROWS) == [0, 2]


def test_an_unfinished_iteration_has_the_record_that_it_would_have():
    record = iteration_so_far(HISTORY, ROWS)
    assert record is not None
    assert (record[ITERATION], record[BATCHES], record[ACCURACY]) == (1, 2, 0.5)
    assert (record[LOSS], record["spin/generated_length"]) == (0.5, 17.0)
    assert iteration_so_far(HISTORY, ROWS[:4]) is None


def write_run(folder: Path, steps: str, history: RunHistory | None = None) -> Path:
    (folder / "steps.jsonl").write_text(steps)
    if history is not None:
        (folder / "iterations.json").write_text(history.as_json())
    return folder


def test_the_table_has_a_row_for_an_iteration_that_is_not_finished():
    out = io.StringIO()
    print_table(HISTORY, Console(file=out, width=150), ROWS)
    assert "1, so far" in out.getvalue()
    out = io.StringIO()
    print_table(HISTORY, Console(file=out, width=150), ROWS[:4])
    assert "so far" not in out.getvalue()


def test_a_report_draws_the_steps_before_the_first_iteration_ends(tmp_path):
    store, picture = write_run(tmp_path, TEXT), tmp_path / "curves.png"
    done = CliRunner().invoke(app, ["report", str(store), "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert "0, so far" in done.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_curves_over_steps_need_no_evaluation(tmp_path):
    draw(HISTORY, tmp_path / "curves.png", [trained(1, 0, 0.5)])
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_every_line_is_json_for_other_programs():
    assert [json.loads(line)["step"] for line in TEXT.splitlines()] == [0, 1, 2, 2, 3, 4]
