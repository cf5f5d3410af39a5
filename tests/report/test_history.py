from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from spin_composer.demo import results as figures
from spin_composer.demo import run, sft
from spin_composer.errors import StoreError
from spin_composer.metrics import PAIR_METRICS
from spin_composer.play.metrics import PLAY_METRICS
from spin_composer.report import curves, table
from spin_composer.report.curves import draw
from spin_composer.report.history import (
    ACCURACY,
    BATCHES,
    DEGENERATE_FRACTION,
    GENERATED_LENGTH,
    ITERATION,
    LOSS,
    MARGIN,
    NLL,
    PAIRS,
    PLAY_SECONDS,
    TRUNCATED_FRACTION,
    RunHistory,
    in_training,
    read_history,
)
from spin_composer.report.table import held_out_columns, print_table

CONTENT = {
    "baseline": {"eval/eval/LanguageCrossEntropy": 2.0, "eval/eval/TokenAccuracy": 0.25},
    "iterations": [
        {
            "iteration": 0,
            "batches": 12,
            "spin/pairs": 384,
            "spin/generated_length": 17.25,
            "spin/truncated_fraction": 0.125,
            "train/SpinAccuracy": 0.75,
            "train/SpinMargin": 0.5,
            "eval/eval/LanguageCrossEntropy": 1.75,
        },
        {"iteration": 1, "batches": 24, "eval/eval/LanguageCrossEntropy": float("nan")},
    ],
}


def write(folder: Path, history: object) -> Path:
    (folder / "iterations.json").write_text(json.dumps(history))
    return folder


def printed(folder: Path) -> list[str]:
    console = Console(width=160, record=True, file=io.StringIO())
    print_table(read_history(folder), console)
    return console.export_text().splitlines()


def row(lines: list[str], name: str) -> list[str]:
    (found,) = [line for line in lines if line.strip("│ ").split(" ")[0] == name]
    return [cell.strip() for cell in found.strip("│").split("│")]


def test_table_has_the_base_model_and_every_iteration(tmp_path: Path):
    lines = printed(write(tmp_path, CONTENT))
    assert row(lines, "base")[1] == "2.000"
    assert row(lines, "0")[1:7] == ["1.750", "384", "12", "-", "0.750", "0.500"]
    assert row(lines, "0")[7:9] == ["17.2", "12.5%"]


def test_figures_that_are_not_there_are_dashes_not_zeros(tmp_path: Path):
    last = row(printed(write(tmp_path, CONTENT)), "1")
    assert last[1] == "-"
    assert last[3] == "24"
    assert set(last[4:]) == {"-"}


def test_run_without_evaluation_has_a_table(tmp_path: Path):
    write(tmp_path, {"baseline": {}, "iterations": [{"iteration": 0, "batches": 3}]})
    assert row(printed(tmp_path), "0")[2] == "3"


def test_every_evaluation_loader_has_its_column(tmp_path: Path):
    baseline = {"eval/chat/LanguageCrossEntropy": 1.0, "eval/math/LanguageCrossEntropy": 2.0}
    write(tmp_path, {"baseline": baseline, "iterations": []})
    titles = [column.title for column in held_out_columns(read_history(tmp_path))]
    assert titles == ["chat NLL", "math NLL"]


def test_the_history_is_read_from_the_store_or_the_file(tmp_path: Path):
    write(tmp_path, CONTENT)
    assert read_history(tmp_path).baseline == read_history(tmp_path / "iterations.json").baseline


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"baseline": {}}', '{"baseline": 1, "iterations": []}']
)
def test_a_damaged_history_is_an_error_that_names_the_file(tmp_path: Path, text: str):
    (tmp_path / "iterations.json").write_text(text)
    with pytest.raises(StoreError, match=r"iterations\.json is damaged"):
        read_history(tmp_path)


def test_a_missing_history_is_an_error_that_names_the_setting(tmp_path: Path):
    with pytest.raises(StoreError, match=r"algorithms\.spin\.store"):
        read_history(tmp_path / "elsewhere")


def test_curves_are_a_png(tmp_path: Path):
    picture = tmp_path / "new" / "curves.png"
    draw(read_history(write(tmp_path, CONTENT)), picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_history_is_read_as_it_is_written(tmp_path: Path):
    history = RunHistory(
        {"eval/x": 1.5}, [{ITERATION: 0, BATCHES: 3, "loss/train/total": 0.5}], "by hand"
    )
    (tmp_path / "iterations.json").write_text(history.as_json())
    assert read_history(tmp_path) == history


def test_the_figures_that_reports_show_are_those_that_are_logged() -> None:
    of_play = {PAIRS, GENERATED_LENGTH, TRUNCATED_FRACTION, DEGENERATE_FRACTION, PLAY_SECONDS}
    assert of_play <= set(PLAY_METRICS)
    logged = {in_training(metric.__name__) for metric in PAIR_METRICS}
    assert {ACCURACY, MARGIN} <= logged


def test_no_report_types_a_logged_name_again() -> None:
    names = [*PLAY_METRICS, *(in_training(metric.__name__) for metric in PAIR_METRICS), LOSS, NLL]
    for module in (table, curves, figures, run, sft):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert [name for name in names if f'"{name}"' in source] == []
