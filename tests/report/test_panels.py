from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.reported_run import write_run

from spin_composer.report import panels
from spin_composer.report.outline import RunOutline
from spin_composer.report.panels import charts, thinned
from spin_composer.report.run_files import read_run


def test_many_steps_become_means_of_several() -> None:
    points = [(float(x), x * 10.0) for x in range(1, 6)]
    assert thinned(points, 1) == points
    assert thinned(points, 2) == [(2.0, 15.0), (4.0, 35.0), (5.0, 50.0)]


def test_a_long_runs_curves_have_fewer_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panels, "MOST_POINTS", 4)
    found = charts(read_run(RunOutline(write_run(tmp_path, iterations=2))))
    assert found.steps_per_point == 3
    assert {len(curve.points) for panel in found.panels for curve in panel.curves} == {4}


def test_a_figure_that_is_no_number_is_no_point(tmp_path: Path) -> None:
    store = write_run(tmp_path, iterations=1)
    lines = (store / "steps.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    lines[1] = json.dumps({**row, "loss/train/total": None})
    (store / "steps.jsonl").write_text("\n".join(lines) + "\n")
    loss = charts(read_run(RunOutline(store))).panels[0].curves[0]
    assert [x for x, _ in loss.points] == [1, 3, 4, 5]


def test_what_the_judge_measured_stands_at_the_ends_of_iterations(tmp_path: Path) -> None:
    store = write_run(tmp_path, iterations=2)
    values = {"start": 0.9, "iter-000": 0.8, "iter-001": 0.7}
    values |= {"ba7": 0.6, "step-1": 0.6}  # of exports without an iteration's number
    models = [
        {"name": name, "measures": {"classifier_accuracy": {"value": x}}}
        for name, x in values.items()
    ]
    (store / "judge.json").write_text(json.dumps({"models": models}))
    judge = charts(read_run(RunOutline(store))).panels[-1]
    assert judge.title.startswith("judge")
    assert judge.curves[0].points == [(0.0, 0.9), (5.0, 0.8), (10.0, 0.7)]


def test_real_lengths_stand_beside_generated_ones(tmp_path: Path) -> None:
    store = write_run(tmp_path, iterations=1)
    with open(store / "steps.jsonl", "a") as file:
        row = {"step": 6, "iteration": 1, "epoch": 2, "time": 1.0}
        row |= {"spin/generated_length": 9.5, "responses/real_length": 8.5}
        file.write(json.dumps(row) + "\n")
    found = charts(read_run(RunOutline(store))).panels
    (panel,) = [p for p in found if p.title == "length of responses"]
    ends = {curve.label: curve.points[-1] for curve in panel.curves}
    assert ends == {"real": (6.0, 8.5), "generated": (6.0, 9.5)}


def test_held_out_figures_have_a_curve_per_loader(tmp_path: Path) -> None:
    store = write_run(tmp_path, iterations=1)
    with open(store / "steps.jsonl", "a") as file:
        row = {"step": 5, "iteration": 0, "epoch": 1, "time": 1.0}
        for label in ("chat", "math"):
            row |= {f"metrics/{label}/LanguageCrossEntropy": 1.5}
        file.write(json.dumps(row) + "\n")
    (panel,) = [p for p in charts(read_run(RunOutline(store))).panels if p.title == "held-out NLL"]
    assert [(curve.label, curve.points) for curve in panel.curves] == [
        ("chat", [(5, 1.5)]), ("math", [(5, 1.5)]),
    ]  # fmt: skip
