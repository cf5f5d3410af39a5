"""What the doctor and --version say of this machine."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from spin_composer import doctor
from spin_composer.cli import app


def test_it_names_versions_memory_and_disks_and_says_what_is_missing():
    found = json.loads(doctor.examine().as_json())
    assert found["packages"]["torch"] == version("torch")
    assert found["memory"]["shared_memory_bytes"]["total"] > 0
    assert found["disk"]["working_folder"]["writable"]
    assert found["GPUs".lower()]["count"] or any("torch sees no GPU" in x for x in found["notes"])


def test_little_shared_memory_is_a_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_LEAST_SHARED", 1 << 60)
    (line,) = [note for note in doctor.examine().notes if note.startswith("/dev/shm has")]
    assert "--shm-size" in line


def test_the_command_prints_a_table_or_json():
    table = CliRunner().invoke(app, ["doctor"])
    assert table.exit_code == 0
    assert "shared memory" in table.stdout
    assert json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["packages"]


def test_the_version_names_the_stack_and_loads_none_of_it():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("spin-composer ")
    assert f"torch {version('torch')}" in done.stdout
