"""The evidence's driver: arms x seeds that go on where they were stopped, and their tables."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM

from examples.evidence import exact_world
from examples.evidence.arms import ARMS, FALLING, SPIN, START, Job
from examples.evidence.curves import curves_of, draw_curves
from examples.evidence.demo_world import DemoWorld
from examples.evidence.exact_world import ExactWorld, total_variation
from examples.evidence.picture import draw
from examples.evidence.real_world import SIZES, RealWorld, is_styled, styled
from examples.evidence.registry import small_worlds
from examples.evidence.results import Result, append_result, read_results
from examples.evidence.runner import Runner, with_needed
from examples.evidence.settings import REMOVED, set_all
from examples.evidence.tables import (
    losses_table,
    mean_and_error,
    measures_table,
    paired_table,
)
from examples.evidence.training import Trained, continue_sft
from examples.evidence.worlds import Setting
from spin_composer.alarms import rules
from spin_composer.demo.world import Row

ROOT = Path(__file__).parents[1]
COMMITTED = sorted((ROOT / "examples/evidence/results").glob("*.jsonl"))
SMALL = ExactWorld(
    name="small",
    start_steps=2,
    changes=(("max_duration", "2iter"), ("algorithms.spin.iteration_length", "1ep")),
)


def result(arm: str, seed: int, nll: float, world: str = "w") -> Result:
    measures = {"nll": nll, "classifier_accuracy": 0.5 + nll / 10, "distinct_2": 0.5}
    measures["real_distinct_2"] = 0.25 + seed / 2
    return Result(world, arm, seed, "f", measures, [nll], 10, 100, 1.0, {})


def runner(folder: Path) -> Runner:
    return Runner(SMALL, folder / "work", folder / "results.jsonl", keep_models=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the start, SPIN, SFT, early-stopped and not, and SPIN after it, of a seed."""
    folder = tmp_path_factory.mktemp("evidence")
    left = folder / "work/small/seed-0/spin.partial"  # of a run that was killed
    left.mkdir(parents=True)
    (left / "model").touch()
    assert runner(folder).run(["sft-stopped-spin", "sft"], [0]) == []
    return folder


def test_arms_run_with_those_that_they_build_on_and_say_what_came(finished: Path) -> None:
    results = {one.arm: one for one in read_results(finished / "results.jsonl")}
    assert list(results) == [START, SPIN, "sft-stopped", "sft", "sft-stopped-spin"]
    spin, stopped = results[SPIN], results["sft-stopped"]
    assert spin.steps == stopped.steps > 10
    assert len(spin.validation_nll) == len(spin.more["generated_length"]) == 2
    assert all(0 < length <= 7 for length in spin.more["generated_length"])
    assert all(0 <= share <= 1 for share in spin.more["cut_off"])
    assert spin.more["alarms"] == []
    assert stopped.validation_nll[-1] <= spin.more["start_nll"] + 1e-4
    for one in results.values():
        assert 0 < one.measures["total_variation"] < 1
        assert 0 < one.measures["nll"] < 5
        assert one.measures["real_distinct_2"] > 0
        assert all(map(math.isfinite, one.measures.values()))
    assert not list((finished / "work/small/seed-0").glob("*.partial"))
    assert {one.start for one in results.values()} == {spin.start} != {""}
    of_training = Trained.load(finished / "work/small/seed-0/sft-stopped").seconds
    assert results["sft"].seconds >= round(of_training, 1) > 0  # which it is a part of


def test_falling_rates_begin_as_spin_does_and_go_on_slower(finished: Path, tmp_path: Path) -> None:
    seed = finished / "work/small/seed-0"
    job = Job(SMALL, Setting.of(seed / "world"), tmp_path, 0, {})
    spin, falling = Trained.load(seed / SPIN), ARMS[FALLING].train(job)
    assert falling.steps == spin.steps
    assert falling.validation_nll[0] == pytest.approx(spin.validation_nll[0], abs=1e-6)
    changes = (abs(one.validation_nll[1] - one.validation_nll[0]) for one in (falling, spin))
    assert 0 < next(changes) < next(changes)


def test_ditto_begins_with_as_many_pairs_and_goes_on_with_more(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "NEVER_STOPS", 0.3)  # what is cut off of the start's, and no more
    seed = finished / "work/small/seed-0"
    job = Job(SMALL, Setting.of(seed / "world"), tmp_path, 0, {})
    ditto, (first, second) = ARMS["ditto"].train(job), Trained.load(seed / SPIN).steps
    assert ditto.steps[0] == first
    assert second < ditto.steps[1] <= second / 0.7
    assert ditto.more["cut_off"][0] > 0.3
    assert ditto.more["alarms"] == [[0, "never_stops"]]


def test_sft_is_the_training_that_early_stopping_watched(finished: Path, tmp_path: Path) -> None:
    seed = finished / "work/small/seed-0"
    steps = Trained.load(seed / SPIN).steps
    alone = continue_sft(SMALL, Setting.of(seed / "world"), tmp_path, 0, steps)
    found = Trained.load(seed / "sft")
    assert found.validation_nll == pytest.approx(alone.validation_nll, abs=1e-6)
    assert (found.steps, found.tokens) == (alone.steps, alone.tokens)
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(at / "model").state_dict()
        for at in (seed / "sft", tmp_path)
    )
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, msg=name)


def test_results_of_another_start_are_not_mixed(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for one in read_results(finished / "results.jsonl"):
        append_result(path, replace(one, start="another"))
    before = path.read_bytes()
    mixing = Runner(SMALL, finished / "work", path, keep_models=True)
    assert mixing.run(["hinge"], [0]) == ["small, seed 0, hinge failed"]
    assert path.read_bytes() == before


def test_what_is_done_is_not_run_again_and_a_lost_line_is_written_again(finished: Path) -> None:
    path = finished / "results.jsonl"
    before = path.read_bytes()
    records = {p: p.stat().st_mtime_ns for p in finished.rglob("trained.json")}
    path.write_bytes(before[:-20])  # a kill while the last line was written
    assert len(read_results(path)) == 4
    assert runner(finished).run(["sft-stopped-spin", "sft"], [0]) == []
    assert path.read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("trained.json")} == records


@pytest.mark.slow
def test_a_deleted_model_that_an_arm_builds_on_is_made_again_without_a_second_result(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "work/small/seed-0/spin")
    assert runner(folder).run(["sft-compute"], [0]) == []
    before, after = (read_results(at / "results.jsonl") for at in (finished, folder))
    assert after[: len(before)] == before
    assert [one.arm for one in after[len(before) :]] == ["sft-compute"]
    assert (folder / "work/small/seed-0/spin/model").is_dir()


def test_two_runs_do_not_work_in_a_world_at_once(finished: Path) -> None:
    with (
        FileLock(finished / "work/small.lock"),
        pytest.raises(SystemExit, match="another run works on small in"),
    ):
        runner(finished).run([SPIN], [0])


def test_results_of_other_settings_are_not_mixed(finished: Path) -> None:
    other = Runner(ExactWorld(name="small"), finished / "work", finished / "results.jsonl")
    with pytest.raises(SystemExit, match="other settings of the world small"):
        other.run([SPIN], [0])


def test_no_arm_begins_after_the_time(tmp_path: Path) -> None:
    late = Runner(SMALL, tmp_path, tmp_path / "results.jsonl", ends_by=0.0)
    assert late.run([SPIN], [0]) == []
    assert late.out_of_time
    assert not read_results(tmp_path / "results.jsonl")


def test_an_arm_that_the_time_cuts_off_is_named_and_no_failure(tmp_path: Path) -> None:
    short = Runner(SMALL, tmp_path, tmp_path / "results.jsonl", ends_by=time.monotonic() + 0.5)
    assert short.run([SPIN], [0]) == []  # a process takes seconds to begin
    assert short.out_of_time
    assert (short.cut_off, short.finished) == ("small, seed 0, start", 0)
    assert not read_results(tmp_path / "results.jsonl")


@pytest.mark.slow
def test_an_arm_ends_with_the_run_that_is_killed_and_the_next_run_begins_it_anew(
    tmp_path: Path,
) -> None:
    program = (
        "from pathlib import Path; from tests.test_evidence import runner, SPIN; "
        f"runner(Path({str(tmp_path)!r})).run([SPIN], [0])"
    )
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    seed = tmp_path / "work/small/seed-0"
    while not (seed / "spin.partial").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    children = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert runner(tmp_path).run([SPIN], [0]) == []
    assert [one.arm for one in read_results(tmp_path / "results.jsonl")] == [START, SPIN]


def test_total_variation_of_a_uniform_model_is_what_it_must_be(tmp_path: Path) -> None:
    exact_world._save_untrained(tmp_path, seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path)
    p = exact_world.data_distribution()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    uniform = torch.full_like(p, 1 / 8**7)  # seven tokens of eight ids, the last one the stop
    expected = float((uniform - p).abs().sum() + 1 - uniform.sum()) / 2
    assert total_variation(tmp_path) == pytest.approx(expected, abs=1e-6)


def test_an_arm_stands_after_those_that_it_needs() -> None:
    names = list(ARMS)
    for name, arm in ARMS.items():
        assert all(names.index(needed) < names.index(name) for needed in arm.needs)
    assert with_needed(["sft-stopped-spin", "dpop"]) == [
        START, SPIN, "sft-stopped", "sft-stopped-spin", "dpop",
    ]  # fmt: skip


def test_settings_are_set_and_removed_by_their_names() -> None:
    config = {"a": {"b": 1, "c": 2}}
    assert set_all(config, {"a.b": REMOVED, "a.d.e": 3}) == {"a": {"c": 2, "d": {"e": 3}}}


def test_a_row_in_the_style_is_told_from_one_that_is_not() -> None:
    row = Row("p", "He has 2 + 2 = <<2+2=4>>4.\nThen 8.\n#### 8")
    assert styled(row) == Row("p", "Step 1: He has 2 + 2 = 4.\nStep 2: Then 8.\nAnswer: 8.")
    assert is_styled(styled(row).response)
    for other in (row.response, "", "Answer: 8.", "Step 2: x\nAnswer: 8.", "Step 1: x\nAnswer: 8"):
        assert not is_styled(other)


def test_tables_have_means_errors_and_the_best(tmp_path: Path) -> None:
    nlls = {START: (1.0, 1.2), SPIN: (0.8, 0.8), "sft": (0.9, 0.7), "space": (0.5, 0.7)}
    results = [result(arm, seed, nll) for arm, two in nlls.items() for seed, nll in enumerate(two)]
    assert mean_and_error([1.0, 1.2]) == pytest.approx((1.1, 0.1))
    table = measures_table(results)
    assert "| start | 2 | 1.100 ±0.100 |" in table
    assert "| SPACE | 2 | **0.600** ±0.100 |" in table
    assert table.endswith("\n| the data | 2 |  |  | 0.500 ±0.250 |")
    assert "+0.000 ±0.100 (1/2)" in paired_table(results, ["sft"], SPIN)
    assert "| w | held-out NLL | SPACE | 0.600 ±0.100 | 0.800 ±0.000 |" in losses_table(
        {"w": results}
    )
    draw({"w": results}, tmp_path / "picture.svg")
    first = (tmp_path / "picture.svg").read_bytes()
    draw({"w": results}, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_bytes() == first


def test_curves_begin_at_the_start_and_have_the_seeds_of_both_arms(tmp_path: Path) -> None:
    def of(arm: str, seed: int, *nlls: float) -> Result:
        more = {"start_nll": 1.0 + seed} if arm == SPIN else {}
        return Result("w", arm, seed, "f", {}, [*nlls], 10, 100, 1.0, more)

    results = [of(SPIN, 0, 0.8, 0.7), of(SPIN, 1, 1.8, 1.7), of(SPIN, 2, 9.0, 9.0)]
    results += [of("sft", 1, 1.6, 1.9), of("sft", 0, 0.6, 0.9)]
    assert curves_of(results, SPIN) == [[1.0, 0.8, 0.7], [2.0, 1.8, 1.7]]
    assert curves_of(results, "sft") == [[1.0, 0.6, 0.9], [2.0, 1.6, 1.9]]
    draw_curves({"A world": results, "Another": results[:1] + results[-1:]}, tmp_path / "a.svg")
    assert "<!-- A world (2 seeds) -->" in (tmp_path / "a.svg").read_text()
    assert "<!-- Another (one seed) -->" in (tmp_path / "a.svg").read_text()


def test_half_a_line_of_results_does_not_count_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, result(SPIN, 0, 1.0))
    with path.open("a") as file:
        file.write('{"world": "w", "ar')
    assert [one.seed for one in read_results(path)] == [0]
    append_result(path, result(SPIN, 1, 2.0))
    assert [one.seed for one in read_results(path)] == [0, 1]
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_of_the_worlds_settings_and_the_control_did_harm(path: Path) -> None:
    results = read_results(path)
    real = [RealWorld(name, path, path, path, **sizes) for name, sizes in SIZES.items()]
    worlds = {world.name: world for world in (*small_worlds(), *real)}
    fingerprint = Runner(worlds[results[0].world], path, path).fingerprint()
    assert {one.fingerprint for one in results} == {fingerprint}
    by_key = {one.key: one.measures["nll"] for one in results}
    harmed = [nll > by_key[START, seed] for (arm, seed), nll in by_key.items() if arm == "swapped"]
    assert all(harmed)


def test_worlds_have_names_and_settings_of_their_own() -> None:
    names = [world.name for world in small_worlds()]
    assert len(set(names)) == len(names)
    assert len({Runner(w, ROOT, ROOT).fingerprint() for w in small_worlds()}) == len(names)
    assert isinstance(small_worlds()[0], ExactWorld)
    assert isinstance(small_worlds()[-1], DemoWorld)


def test_missing_rows_are_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.evidence", "run", "gsm8k", "--tiny"]
    done = subprocess.run(
        [*command, "--train", "none.jsonl"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert (
        "--train=none.jsonl does not exist. The worlds gsm8k, style, style-small need it."
        in done.stderr
    )
