"""`spin-composer status` says where a run stands, from its files alone."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from fixtures.reported_run import process, write_run
from fixtures.yaml_run import tiny_config, write_config
from rich.console import Console
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import InputError, StoreError
from spin_composer.report.outline import read_outline
from spin_composer.report.processes import as_json
from spin_composer.report.status import next_step, print_status, read_status


class Run:
    """The files of a run, written by hand."""

    def __init__(self, folder: Path):
        self.folder, self.store = folder, folder / "self-play"
        self.yaml = write_config(tiny_config(folder, folder), folder / "run.yaml")
        self.store.mkdir()

    def play(self, iteration: int, units: int, of: int, began: float | None = None) -> None:
        folder = self.store / f"iter-{iteration:03d}"
        (folder / "units").mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps({"num_units": of}))
        for unit in range(units):
            self.unit(iteration, unit).mkdir(exist_ok=True)
            files = {"shard.mds": {"bytes": 3, "xxh64": "not read"}}
            report = {"pairs": 5, "generated_tokens": 30, "generation_seconds": 0.5}
            if began is not None:  # each takes a second, and begins as the one before is half done
                report |= {"began": began + unit / 2, "ended": began + unit / 2 + 1}
            (self.unit(iteration, unit) / "unit.json").write_text(
                json.dumps({**report, "files": files})
            )
            (self.unit(iteration, unit) / "shard.mds").write_text("abc")

    def unit(self, iteration: int, unit: int) -> Path:
        return self.store / f"iter-{iteration:03d}/units/unit-{unit:05d}"

    def close(self, *iterations: int) -> None:
        records = [{"iteration": i} for i in iterations]
        history = {"baseline": {}, "iterations": records}
        (self.store / "iterations.json").write_text(json.dumps(history))

    def save(self, epoch: int, batch: int, cut: bool = False) -> None:
        path = self.save_as(f"ep{epoch}-ba{batch}-rank0.pt")
        if cut:
            os.truncate(path, 50)

    def save_as(self, name: str) -> Path:
        path = self.folder / "checkpoints" / name
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("data", "x" * 99)
        return path

    def next(self) -> str:
        return next_step(read_status(read_outline(self.yaml)))

    def printed(self) -> str:
        out = io.StringIO()
        print_status(read_status(read_outline(self.yaml)), Console(file=out, width=150))
        return out.getvalue()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_each_stage_of_a_run_names_what_comes_next(run):
    assert run.next() == "the same command plays iteration 0"
    run.play(0, 2, of=5)
    assert run.next() == "the same command plays 3 units of iteration 0"
    run.play(0, 5, of=5)
    run.save(0, 5)
    assert run.next() == "the same command trains iteration 0 from epoch 0, batch 5"
    run.save(2, 12)
    run.close(0)
    assert run.next() == "the same command plays iteration 1 (no unit is there yet)"
    run.play(1, 4, of=10)
    assert run.next() == "the same command plays iteration 1 (4 of 10 units are there)"
    run.save(3, 20)
    assert run.next() == "the same command trains iteration 1 from epoch 3, batch 20"
    run.save(4, 36)
    run.close(0, 1)
    assert run.next() == "nothing: the run is finished"


def test_units_rates_and_states_are_printed(run):
    run.play(0, 5, of=5)
    run.close(0)
    run.play(1, 4, of=10, began=1e9)
    run.save(2, 12)
    text = run.printed()
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert rows == [
        ["0", "5 of 5", "25", "60", "-", "trained"],  # units that note no time
        ["1", "4 of 10", "20", "60", "2.5", "in play"],
    ]
    assert "2 of 2 iterations begun" in text
    assert "checkpoint: ep2-ba12-rank0.pt" in text
    assert "process:    none" in text


def test_a_checkpoint_cut_short_is_named_and_not_counted(run):
    run.save(0, 5)
    run.save(0, 10, cut=True)
    text = run.printed()
    assert "checkpoint: ep0-ba5-rank0.pt" in text
    assert "ep0-ba10-rank0.pt is cut short; the next start sets it aside" in text


LAST = "the same command trains iteration 1 from the last checkpoint in it"


@pytest.mark.parametrize(
    ("filename", "names", "following"),
    [
        ("ba{batch}.pt", ["ba9.pt", "ba12.pt"], LAST),
        ("of-{run_name}.pt", ["of-tiny.pt"], LAST),
        ("ep{epoch}.pt", ["ep1.pt", "ep3.pt"], "the same command trains iteration 1 from epoch 3"),
    ],
)
def test_a_checkpoint_whose_name_lacks_its_position_is_named(run, filename, names, following):
    run.play(0, 5, of=5)
    run.close(0)
    run.play(1, 5, of=5)
    for name in names:
        run.save_as(name)
    settings = [f"save_filename={filename}"]
    status = read_status(read_outline(run.yaml, settings))
    assert status.checkpoint == names[-1]
    assert not status.partial
    assert next_step(status) == following


def test_a_finished_run_whose_checkpoints_have_no_epoch_is_said_to_be_finished(run):
    run.play(0, 5, of=5)
    run.play(1, 5, of=5)
    run.close(0, 1)
    outline = read_outline(run.yaml, ["save_filename=ba{batch}.pt"])
    assert next_step(read_status(outline)) != "nothing: the run is finished", "nothing is saved"
    run.save_as("ba36.pt")
    assert next_step(read_status(outline)) == "nothing: the run is finished"


def test_a_live_run_and_a_dead_one_are_told_apart(run):
    lock = run.store / "run.lock"
    lock.write_text(json.dumps({"run": "tiny", "pid": 7, "host": "node-3"}))
    status = read_status(read_outline(run.yaml))
    assert status.live
    assert next_step(status) == "it plays iteration 0"
    os.utime(lock, (0, 0))
    assert not read_status(read_outline(run.yaml)).live
    assert "run 'tiny', process 7 on node-3, died or is cut off" in run.printed()


def test_the_stores_folder_alone_will_do(run):
    run.play(0, 2, of=5)
    assert next_step(read_status(read_outline(run.store))) == (
        "the same command plays 3 units of iteration 0"
    )


def test_a_finished_runs_store_says_so_by_its_own_record(tmp_path):
    store = write_run(tmp_path, iterations=3)  # of three
    status = read_status(read_outline(store))
    assert next_step(status) == "nothing: the run is finished"
    assert status.outline.iterations == 3
    (store / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        read_status(read_outline(store))


def test_an_unfinished_runs_store_is_not_said_to_be_finished(tmp_path):
    assert next_step(read_status(read_outline(write_run(tmp_path, iterations=2)))) == (
        "iteration 1 is trained; the same command resumes from its checkpoint"
    )


@pytest.mark.parametrize(
    ("name", "text"), [("shard.mds", "x"), ("unit.json", "x"), ("unit.json", '{"files": []}')]
)
def test_damage_is_shown_and_exits_3(run, name, text):
    run.play(0, 2, of=2)
    (run.unit(0, 1) / name).write_text(text)
    done = CliRunner().invoke(app, ["status", str(run.yaml)])
    assert done.exit_code == 3
    assert "unit-00001" in done.stdout
    assert "is damaged" in done.stdout


def test_a_sound_store_exits_0(run):
    run.play(0, 2, of=2)
    assert CliRunner().invoke(app, ["status", str(run.store)]).exit_code == 0


def test_no_store_and_no_yaml_are_said(run, tmp_path):
    run.store.rmdir()
    with pytest.raises(StoreError, match="does not exist: the run has not begun"):
        read_status(read_outline(run.yaml))
    with pytest.raises(InputError, match="neither a folder nor a YAML"):
        read_outline(tmp_path / "nothing")


def test_a_runs_folder_is_told_from_its_store(tmp_path):
    (tmp_path / "self-play").mkdir()
    with pytest.raises(InputError, match=r"is a run's folder, not its store. Give .*/self-play\."):
        read_outline(tmp_path)


def test_a_folder_of_runs_is_no_store(tmp_path):
    for name in ("one", "two"):
        write_run(tmp_path / "runs" / name / "self-play")
    done = CliRunner().invoke(app, ["status", str(tmp_path / "runs")])
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == (
        f"{tmp_path}/runs is not a run's store: it has files, but none of a store. Give the folder "
        "that algorithms.spin.store names."
    )


@pytest.mark.parametrize("file", [None, "run.lock", "run.json", ".run.lock.0123abcd"])
def test_a_store_that_has_just_begun_is_one(tmp_path, file):
    if file is not None:
        (tmp_path / file).write_text(as_json([process()]))
    assert next_step(read_status(read_outline(tmp_path))).endswith("plays iteration 0")


def test_settings_change_where_a_yaml_looks(run, tmp_path):
    run.play(0, 2, of=2)
    elsewhere = tmp_path / "elsewhere"
    run.store.rename(elsewhere)
    assert CliRunner().invoke(app, ["status", str(run.yaml)]).exit_code != 0
    done = CliRunner().invoke(app, ["status", str(run.yaml), f"spin.store={elsewhere}"])
    assert done.exit_code == 0, done.output


def test_settings_without_a_yaml_are_refused(run):
    with pytest.raises(InputError, match="no YAML"):
        read_outline(run.store, ["spin.beta=1"])


def test_a_stores_url_is_an_outline(tmp_path):
    assert read_outline("s3://bucket/run/self-play").remote == "s3://bucket/run/self-play"
