"""`spin-composer report`: where the page goes, and how it is watched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.reported_run import write_run
from fixtures.yaml_run import tiny_config, write_config
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import EnvironmentFailure, InputError
from spin_composer.report_command import ReportOptions, report
from spin_composer.settings.spin import STORES

REFRESH = 'http-equiv="refresh"'


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["report", *arguments], env={"COLUMNS": "200"})


def test_the_page_goes_into_the_store_beside_the_table(tmp_path: Path) -> None:
    store = write_run(tmp_path / "self-play")
    done = invoke(str(store))
    assert done.exit_code == 0, done.output
    assert "SPIN, iteration by iteration" in done.stdout
    assert f"report: {store / 'report.html'}" in done.stdout
    assert (store / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_a_page_may_go_elsewhere_or_nowhere(tmp_path: Path) -> None:
    store = write_run(tmp_path / "self-play")
    assert invoke(str(store), "--no-html").exit_code == 0
    assert invoke(str(store), "--html", str(tmp_path / "new/page.html")).exit_code == 0
    assert not (store / "report.html").exists()
    assert (tmp_path / "new/page.html").exists()


def test_a_runs_yaml_and_its_historys_file_name_the_store(tmp_path: Path) -> None:
    store = write_run(tmp_path / "self-play")
    yaml = write_config(tiny_config(tmp_path, tmp_path), tmp_path / "run.yaml")
    for run in (yaml, store / "iterations.json"):
        done = invoke(str(run))
        assert done.exit_code == 0, done.output
        (store / "report.html").unlink()


def test_the_page_of_a_store_at_a_url_goes_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STORES, "shelf", "store.test_open:ShelfStore")
    shelf = write_run(tmp_path / "shelf")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    done = invoke(f"shelf://{shelf}")
    assert done.exit_code == 0, done.output
    assert f"shelf://{shelf}" in (tmp_path / "work/report.html").read_text()
    assert not (shelf / "report.html").exists()


class Waits:
    """Waits no time, and does something instead."""

    def __init__(self, *does: Callable[[], object]):
        self.does = list(does)
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.does.pop(0)()


def finish(store: Path) -> None:
    history = json.loads((store / "iterations.json").read_text())
    history["iterations"].append({"iteration": 2, "batches": 5, "loss/train/total": 0.123})
    (store / "iterations.json").write_text(json.dumps(history))


def test_a_watched_page_is_written_until_the_run_is_done(tmp_path: Path) -> None:
    store, pages = write_run(tmp_path, iterations=2), []
    page = store / "report.html"
    wait = Waits(lambda: pages.append(page.read_text()), lambda: finish(store))
    report(str(store), ReportOptions(watch=True, interval_seconds=7), wait)
    assert wait.seconds == [7, 7]
    assert REFRESH in pages[0]
    assert "0.123" in page.read_text()
    assert REFRESH not in page.read_text()


def test_ctrl_c_ends_a_watch_with_a_page_that_stays(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    store = write_run(tmp_path, iterations=2)
    report(str(store), ReportOptions(watch=True), Waits(interrupt))
    assert REFRESH not in (store / "report.html").read_text()


def test_a_finished_run_is_not_watched(tmp_path: Path) -> None:
    store = write_run(tmp_path, iterations=3)
    report(str(store), ReportOptions(watch=True), Waits())


def test_watching_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--no-html"):
        report(str(tmp_path), ReportOptions(with_html=False, watch=True))


def test_a_page_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    store = write_run(tmp_path / "self-play")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFailure, match="--html PATH"):
        report(str(store), ReportOptions(html=tmp_path / "file/report.html"))
