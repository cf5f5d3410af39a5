"""A store is found by its URL's scheme: by a run, and by the commands that show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.yaml_run import tiny_config, write_config
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import InputError
from spin_composer.settings.spin import STORES
from spin_composer.store.local import LocalStore
from spin_composer.store.open import store_at


class ShelfStore(LocalStore):
    """A toy: ``shelf:///path`` is the folder that holds it, wherever a run's own folder is."""

    @classmethod
    def open(cls, root: Path, url: str | None) -> ShelfStore:
        del root
        assert url is not None
        return cls(Path(url.partition("://")[2]))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf with an iteration of five units, of which one is there, and with a history."""
    monkeypatch.setitem(STORES, "shelf", f"{__name__}:ShelfStore")
    folder = tmp_path / "shelf"
    unit = folder / "iter-000/units/unit-00000"
    unit.mkdir(parents=True)
    (unit / "unit.json").write_text(json.dumps({"pairs": 5, "files": {}}))
    (folder / "iter-000/manifest.json").write_text(json.dumps({"num_units": 5}))
    history = {"baseline": {}, "iterations": [{"iteration": 0, "loss/train/total": 0.625}]}
    (folder / "iterations.json").write_text(json.dumps(history))
    return folder


def test_report_reads_a_registered_store_by_its_url(shelf: Path) -> None:
    done = CliRunner().invoke(app, ["report", "--no-html", f"shelf://{shelf}"])
    assert done.exit_code == 0, done.output
    assert "0.625" in done.stdout


def test_status_reads_a_registered_store_by_the_yamls_url(shelf: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path)
    config["algorithms"]["spin"]["remote_store"] = f"shelf://{shelf}"
    yaml = write_config(config, tmp_path / "run.yaml")
    done = CliRunner().invoke(app, ["status", str(yaml)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "1 of 5" in done.stdout


def test_a_missing_history_is_named_by_its_url(shelf: Path) -> None:
    (shelf / "iterations.json").unlink()
    done = CliRunner().invoke(app, ["report", "--no-html", f"shelf://{shelf}"])
    assert f"shelf://{shelf}/iterations.json does not exist" in str(done.exception)


def test_a_scheme_of_no_store_is_refused_and_the_known_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"URL must be one of s3://, gs://, oci://, got 'hdfs://"):
        store_at(tmp_path, "hdfs://name/x")
