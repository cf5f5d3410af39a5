"""The simulation of play: exact where nothing is drawn, no second lost, real stores read."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spin_composer.data.pairs import LENGTH, Pair
from spin_composer.store.local import LocalStore
from spin_composer.store.unit import UnitReport

ROOT = Path(__file__).parents[1]
NEVER = math.inf


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    """The scripts of benchmarks/scaling/, which is not a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks" / "scaling"))
        names = ("play_events", "unit_times", "simulate_play")
        yield {name: importlib.import_module(name) for name in names}


def run(modules: dict[str, Any], queues: list[list[float]], ranks: int, **options: Any) -> Any:
    """Simulate with failures after given times of work; then none."""
    failures = iter(options.pop("failures", []))
    slowness = options.pop("slowness", [1.0] * ranks)
    assert len(slowness) == ranks
    simulate = modules["play_events"].simulate
    return simulate(queues, slowness, lambda: next(failures, NEVER), 100.0, **options)


def figures(found: Any) -> tuple[float, ...]:
    assert found.busy + found.lost + found.waiting + found.down == pytest.approx(
        found.ranks * found.wall_seconds
    )
    return found.wall_seconds, found.busy, found.lost, found.waiting, found.down


def test_two_rounds_of_equal_units_keep_all_ranks_busy(modules):
    assert figures(run(modules, [[10.0] * 16], 8)) == (20, 160, 0, 0, 0)


def test_one_unit_too_many_costs_a_whole_round(modules):
    assert figures(run(modules, [[10.0] * 9], 8)) == (20, 90, 0, 70, 0)


def test_ranks_without_a_unit_wait_from_the_start(modules):
    assert figures(run(modules, [[10.0] * 3], 8)) == (10, 30, 0, 50, 0)


def test_a_slow_rank_holds_up_its_last_unit_only_where_units_are_shared(modules):
    # the slow rank takes 1 of 6 units, the other 5: 50 seconds together
    assert figures(run(modules, [[10.0] * 6], 2, slowness=[5.0, 1.0])) == (50, 100, 0, 0, 0)
    own = run(modules, [[10.0] * 3] * 2, 2, slowness=[5.0, 1.0])
    assert figures(own) == (150, 180, 0, 120, 0)


def test_a_failure_loses_the_units_in_the_making_and_nothing_else(modules):
    # at 25 s four units are kept and two ranks are 5 s into the fifth and sixth
    found = run(modules, [[10.0] * 8], 2, failures=[25.0])
    assert figures(found) == (25 + 100 + 20, 80, 10, 0, 200)
    assert found.restarts == 1


def test_ranks_that_wait_lose_nothing_in_a_failure(modules):
    found = run(modules, [[10.0, 30.0]], 2, failures=[25.0])
    assert figures(found) == (25 + 100 + 30, 40, 25, 15 + 30, 200)


def test_a_failure_where_nothing_is_kept_loses_all_of_it(modules):
    found = run(modules, [[30.0], [10.0]], 2, failures=[25.0], start_over=True)
    assert figures(found) == (25 + 100 + 30, 40, 25 + 10, 15 + 20, 200)


def test_units_of_a_failure_are_taken_again_in_their_order(modules):
    # unit 1 (3 s) and 2 (20 s) are lost at 12 s; in order, unit 1 then 3 (1 s) end beside unit 2
    found = run(modules, [[10.0, 30.0, 20.0, 1.0]], 2, failures=[12.0])
    # kept: unit 0. Then 30 s beside 20 s and 1 s.
    assert figures(found) == (12 + 100 + 30, 61, 12 + 2, 9, 200)


def test_no_second_of_any_rank_is_unaccounted_for(modules):
    rng = np.random.default_rng(0)
    for start_over in (False, True):
        queues = [rng.lognormal(2, 0.5, 40).tolist()]
        failures = rng.uniform(5, 40, 3).tolist()
        slowness = rng.choice([1.0, 1.5], 7).tolist()
        found = run(
            modules, queues, 7, failures=failures, slowness=slowness, start_over=start_over
        )
        assert found.restarts == 3
        figures(found)


def test_a_run_that_hardly_ever_ends_is_given_up(modules):
    found = modules["play_events"].simulate([[10.0]], [1.0], lambda: 5.0, 1.0)
    assert not found.finished
    assert found.restarts == 1000


def world(modules: dict[str, Any], **changes: Any) -> Any:
    """48 prompts in batches of 4; 1 s to generate a prompt's response, 0.5 s to score it."""
    times = modules["unit_times"].Times(np.array([1.0]), np.array([0.5]))
    made = modules["simulate_play"].World(
        times, prompts=48, batch_size=4, short_batch=1.0, commit=0.0, slow_share=0.0,
        mtbf_hours=NEVER,
    )  # fmt: skip
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("unit_size", "changes", "efficiency", "minutes"),
    [
        (12, {}, 1.0, 18 / 60),  # 4 units on 4 ranks
        (16, {}, 0.75, 24 / 60),  # 3 units on 4 ranks
        (12, {"commit": 2.0}, 18 / 20, 20 / 60),
        (6, {}, 9 / 11, 22 / 60),  # 8 units of a batch and half a one, which takes 4 s as well
        (6, {"short_batch": 0.0}, 1.0, 18 / 60),  # two prompts take half the time of four
        (12, {"slow_share": 1.0}, 18 / 27, 27 / 60),
    ],
)
def test_efficiency_is_what_full_batches_at_nominal_speed_would_take(
    modules, unit_size, changes, efficiency, minutes
):
    script = modules["simulate_play"]
    for way in (script.COUNTER, script.SPLIT):
        if way == script.SPLIT and unit_size == 16:
            continue  # a split gives each of the four ranks a unit of 12
        found, spread = script.play(world(modules, **changes), 4, unit_size, way, seeds=2)
        assert found.efficiency == pytest.approx(efficiency)
        assert found.minutes == pytest.approx(minutes)
        assert spread["efficiency"] == 0
        shares = (found.efficiency, found.overhead, found.waiting, found.lost, found.down)
        assert sum(shares) == pytest.approx(1)


def test_nothing_kept_commits_once_and_a_prompt_for_each_rank_is_the_least(modules):
    script = modules["simulate_play"]
    found, _ = script.play(world(modules, commit=2.0), 4, 1, script.WHOLE, seeds=1)
    assert found.minutes == pytest.approx(20 / 60)
    found, _ = script.play(world(modules, prompts=2), 4, 1, script.SPLIT, seeds=1)
    assert found.minutes == pytest.approx(4.5 / 60)


def test_the_recommended_unit_size_is_the_default_or_less_and_of_whole_batches(modules):
    recommended = modules["simulate_play"].recommended
    assert recommended(50_000, 8, 64, default=256) == 256
    assert recommended(50_000, 32, 64, default=256) == 128
    assert recommended(50_000, 512, 64, default=256) == 64
    # 49 prompts for each of 1021 ranks: with 48, one in eighteen would have two units
    assert recommended(50_000, 1024, 64, default=256) == 49
    assert recommended(10, 1024, 64, default=256) == 1


def test_lognormal_times_have_the_mean_and_the_spread_asked_for(modules):
    times = modules["unit_times"].lognormal(0.3)
    assert times.generation.mean() == pytest.approx(1)
    assert times.cv[0] == pytest.approx(0.3, rel=0.02)


def store_with_units(folder: Path) -> Path:
    """A real store: three played units of iteration 0, the last one smaller, and one replayed."""
    store = LocalStore(folder)
    store.open_iteration({"iteration": 0, "num_units": 4})
    ids = [np.array([1, 2], np.int32) for _ in range(3)]
    pairs = [Pair(*ids, -1.0, -2.0, index=0, finish=LENGTH)]
    kinds = [("play", 4, 2.0), ("play", 4, 6.0), ("play", 1, 9.0), ("replay", 4, 0.0)]
    for unit, (kind, prompts, seconds) in enumerate(kinds):
        report = UnitReport(kind, prompts, 1, prompts - 1, 1, 2, seconds, seconds / 2, 0.0)
        store.commit_unit(0, unit, pairs, report)
    return folder


def test_unit_times_are_read_from_a_real_store_and_from_the_file_made_of_it(modules, tmp_path):
    unit_times, script = modules["unit_times"], modules["simulate_play"]
    root = store_with_units(tmp_path / "self-play")
    units = unit_times.read_store(root)
    assert [(u.iteration, u.unit, u.prompts) for u in units] == [(0, 0, 4), (0, 1, 4), (0, 2, 1)]
    times = unit_times.times_of(units)
    assert times.generation.tolist() == [0.5, 1.5]  # the short unit is left out
    assert times.scoring.tolist() == [0.25, 0.75]
    script.main(["--store", str(root), "--save-times", str(tmp_path / "times.json")])
    assert unit_times.read_times(tmp_path / "times.json") == units
    about = json.loads((tmp_path / "times.json").read_text())["about"]
    assert set(about) == {"note", "command", "machine", "versions"}
    scaled = times.scaled(2.0, None)
    assert scaled.generation.tolist() == [1.0, 3.0]
    assert scaled.scoring.tolist() == [0.25, 0.75]


def test_a_folder_without_units_is_named(modules, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} holds no played unit"):
        modules["unit_times"].read_store(tmp_path)


def test_the_script_prints_its_tables_with_the_measured_spread(modules, capsys):
    measured = ROOT / "benchmarks" / "scaling" / "unit-times-gsm8k-tiny.json"
    words = ["--times", str(measured), "--batch-seconds", "8.4", "--score-seconds", "0.04"]
    words += ["--seeds", "1", "--ranks", "8", "512", "--units", "64", "256"]
    modules["simulate_play"].main(words)
    printed = capsys.readouterr().out
    assert "8.40 s to generate" in printed
    lines = [line for line in printed.splitlines() if line.startswith("| 512 | 256 |")]
    assert len(lines) == 1
    efficiency = int(lines[0].split("|")[5].strip().rstrip("%"))
    assert efficiency < 30, "196 units leave most of 512 ranks idle"


def test_the_command_line_says_what_is_missing(modules, capsys):
    with pytest.raises(SystemExit):
        modules["simulate_play"].arguments(["--cv", "0.1"])
    assert "--batch-seconds and --score-seconds" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        modules["simulate_play"].arguments(["--save-times", "x.json"])
    assert "needs --store" in capsys.readouterr().err


def test_the_scripts_load_nothing_heavy(modules):
    import ast

    allowed = set(sys.stdlib_module_names) | {"numpy", *modules}
    for name in ("simulate_play", "play_events", "unit_times"):
        path = ROOT / f"benchmarks/scaling/{name}.py"
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            names = [name for name in names if name != "spin_composer.store.layout"]  # stdlib only
            assert {name.split(".")[0] for name in names} <= allowed, path.name
