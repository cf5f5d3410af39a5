from __future__ import annotations

import pytest

from spin_composer.report.panels import Charts, Curve, Panel
from spin_composer.report.plot import LEFT, Scale, padded, plots, round_step


@pytest.mark.parametrize(
    ("least", "step"), [(0.3, 0.5), (1.0, 1.0), (1.1, 2.0), (6.0, 10.0), (4e-8, 5e-8)]
)
def test_ticks_are_at_round_steps(least: float, step: float) -> None:
    assert round_step(least) == pytest.approx(step)


def test_ticks_lie_within_the_range() -> None:
    assert [tick.text for tick in Scale(0.13, 0.87, 0, 100).ticks()] == ["0.2", "0.4", "0.6", "0.8"]
    assert [tick.text for tick in Scale(0, 3, 0, 100).ticks(whole=True)] == ["0", "1", "2", "3"]
    assert [tick.text for tick in Scale(0.5, 1.5, 0, 9).ticks(whole=True)] == ["1"]


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-9])
def test_a_constant_curve_has_a_range(value: float) -> None:
    low, high = padded([value, value])
    assert low < value < high


def test_points_lie_in_the_box_in_order() -> None:
    curve = Curve("loss", [(1, 0.7), (2, 0.5), (4, 0.6)])
    (plot,) = plots(Charts([Panel("loss", "", [curve])], "optimizer step", [1], 1))
    places = [tuple(map(float, point.split(","))) for point in plot.lines[0].points.split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert places[0][0] == LEFT
    assert places[1][1] > places[2][1] > places[0][1]  # down is larger
    assert (plot.lines[0].xs, plot.lines[0].ys) == ("1 2 4", "0.7 0.5 0.6")


def test_a_run_without_a_point_has_no_panel() -> None:
    assert plots(Charts([], "iteration", [], 1)) == []
