"""``spin-composer demo --small``: a smoke test of an installation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spin_composer.demo import small
from spin_composer.store.layout import iteration_name


@pytest.mark.slow  # make test-wheel runs the command
def test_small_demo_goes_through_a_whole_iteration_and_claims_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(small, "load_quietly", lambda: None)  # it would silence later tests
    folder = tmp_path / "demo"
    small.main(folder)
    printed = capsys.readouterr().out
    figures = json.loads(printed.splitlines()[-1])
    assert figures["small"] is True
    assert figures["pairs"] == 64
    assert figures["steps"] == 8
    assert Path(figures["export"], "model.safetensors").exists()
    assert (folder / "spin/self-play" / iteration_name(0)).is_dir()
    assert any((folder / "spin/checkpoints").iterdir())
    assert "say nothing about SPIN" in printed
