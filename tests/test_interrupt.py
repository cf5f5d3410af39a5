"""Ctrl-C, SIGTERM and the like: where runs stop, what they leave, and how they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.interrupted import CASES, MORE_CASES, Case
from fixtures.yaml_run import save_model, tiny_config, write_config

from spin_composer import interrupt
from spin_composer.errors import InputError, explain, rebuild_error
from spin_composer.settings.yaml import validate

TESTS = Path(__file__).parent
MESSAGE = "interrupted; the same command resumes the run"


def results_of(cases: list[Case], folder: Path) -> dict[str, Any]:
    names = [case.name for case in cases]
    program = [sys.executable, "-m", "fixtures.interrupted", str(folder), *names]
    done = subprocess.run(
        program, capture_output=True, text=True, check=False, timeout=900, cwd=TESTS
    )
    assert (folder / "results.json").exists(), done.stderr[-3000:]
    found = json.loads((folder / "results.json").read_text())
    assert set(found) == set(names), done.stderr[-3000:]
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    return results_of(CASES, tmp_path_factory.mktemp("interrupted"))


@pytest.fixture(scope="module")
def more_results(tmp_path_factory) -> dict[str, Any]:
    return results_of(MORE_CASES, tmp_path_factory.mktemp("interrupted"))


def check(case: Case, found: dict[str, Any]) -> None:
    assert "failed" not in found, found["failed"]
    assert found["codes"] == [128 + case.number] * case.ranks, found["outputs"]
    assert [output.count(MESSAGE) for output in found["outputs"]] == [1] + [0] * (case.ranks - 1)
    for output in found["outputs"]:
        assert "Traceback" not in output
        assert "error:" not in output  # neither the disk nor a lost rank is blamed
        assert "DEBUG" not in output.partition(MESSAGE)[2]
    assert found["lock"] == case.stuck  # else given back
    assert not found.get("problems")  # no checkpoint is half
    if case.resumes:  # and the result was compared
        assert found["resumed"] == [0] * case.ranks
        assert found["aside"] == []
    if case.save:
        assert found["all_batches" if case.resumes else "batches"] == (36 if case.resumes else 8)


@pytest.mark.foundry
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_signal_stops_all_ranks_in_one_line_and_the_same_command_goes_on(case, results):
    check(case, results[case.name])


@pytest.mark.foundry
@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_CASES, ids=lambda case: case.name)
def test_a_signal_stops_them_at_other_moments_too(case, more_results):
    check(case, more_results[case.name])


@pytest.mark.foundry
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["composer", "torchrun"])
def test_ctrl_c_in_a_terminal_reaches_launcher_and_ranks_and_is_one_interruption(
    launcher, tmp_path
):
    config = tiny_config(tmp_path, save_model(tmp_path), max_duration="50iter")
    config["save_interval"] = "5ba"
    yaml = write_config(config, tmp_path / "run.yaml")
    program = str(Path(sys.executable).parent / launcher)
    ranks = "-n" if launcher == "composer" else "--nproc-per-node"
    environment = {**os.environ, "FSDP_VERSION": "2", "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "output.txt", "w") as output:
        run = subprocess.Popen(
            [program, ranks, "2", "-m", "spin_composer.train", str(yaml)],
            stdout=output, stderr=output, start_new_session=True, env=environment, cwd=tmp_path,
        )  # fmt: skip
        while run.poll() is None and not list((tmp_path / "checkpoints").glob("ep0-ba5*")):
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        assert run.wait(120) != 0
    text = (tmp_path / "output.txt").read_text()
    assert text.count(MESSAGE) == 1, text
    assert "error:" not in text
    for problem in ("cut short", "a rank was lost", "SIGKILL"):
        assert problem not in text
    assert not list((tmp_path / "self-play").glob("*.lock"))


@pytest.mark.foundry
def test_a_unit_under_way_is_dropped_and_nothing_else(results):
    found = results["decode"]
    assert found["units"] == found["generated"] == 1
    assert found["all_generated"] == 10  # as many as of a run that is not interrupted
    assert results["two ranks, one decodes"]["units"] < 5


@pytest.mark.foundry
def test_a_save_that_a_signal_meets_is_finished_first(results):
    assert results["save"]["checkpoints"] == ["ep0-ba5-rank0.pt", "latest-rank0.pt"]


@pytest.mark.foundry
def test_a_signal_is_answered_by_a_checkpoint_of_that_batch_if_told_to(results):
    for name in ("saved", "two ranks, saved"):
        assert "ep1-ba8-rank0.pt" in results[name]["checkpoints"]
        line = f"{MESSAGE} from epoch 1, batch 8, which was saved before\n"
        assert line in results[name]["outputs"][0]


@pytest.mark.foundry
def test_status_tells_what_an_interrupted_run_will_do(results):
    owner, then = results["decode"]["status"]
    assert owner == "none"
    assert then == "the same command plays 4 units of iteration 0"
    assert results["saved"]["status"][1] == (
        "the same command trains iteration 0 from epoch 1, batch 8"
    )


def test_saving_at_a_signal_needs_a_folder_and_a_job_that_only_plays_does_not(tmp_path):
    config = tiny_config(tmp_path, model_folder=tmp_path)
    del config["save_folder"]
    config["algorithms"]["spin"]["save_on_signal"] = True
    with pytest.raises(InputError, match=r"save_on_signal=true has nowhere to save: save_folder"):
        validate(config)
    config["algorithms"]["spin"]["play_only"] = {"iteration": 0}
    assert validate(config).save_on_signal


def test_an_interruption_travels_between_ranks_as_its_exit_code():
    code, line = explain(interrupt.Interrupted(15))  # pyright: ignore[reportGeneralTypeIssues]
    assert (code, line) == (143, MESSAGE)
    again = rebuild_error(code, line)
    interrupt.uninstall()
    assert isinstance(again, interrupt.Interrupted)
    assert (again.number, again.code) == (15, 143)


def test_a_thread_that_waits_does_not_keep_an_interrupted_process(tmp_path):
    code = """
import signal, threading
from spin_composer import interrupt
interrupt.LIMIT_SECONDS = 0.0
interrupt.install(owns_process=True)
threading.Thread(target=threading.Event().wait).start()
interrupt.set_deferred(True, no_deadline=True)
interrupt.record_signal(signal.SIGTERM)
interrupt.set_deferred(False)
interrupt.uninstall()
interrupt.exit_process(143)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=600)
    assert done.returncode == 143


def test_signals_are_heard_by_a_process_that_holds_many_open_files():
    code = """
import os, resource, signal, time
from spin_composer import interrupt
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [os.dup(0) for _ in range(1100)]  # more than select.select takes
interrupt.LIMIT_SECONDS = 0.0
interrupt.install(owns_process=True)
interrupt.set_deferred(True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=600)
    assert done.returncode == 143


def test_a_forked_child_dies_of_the_signals_that_its_parent_notes(monkeypatch):
    interrupt.install(owns_process=True)
    try:
        interrupt.set_deferred(True)
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), 2)  # ignored while there is work to finish
            os.kill(os.getpid(), 15)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -15
        assert interrupt.pending_signal() == 0
    finally:
        interrupt.uninstall()
