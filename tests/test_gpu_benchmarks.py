"""The programs of ``make gpu`` on a CPU: they go through, and their checks can fail."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of benchmarks/gpu by name; they are scripts, no package."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "path", list(sys.path))  # the scripts add to it
    return importlib.import_module


def tiny(out: Path, program: str, *options: str) -> dict[str, Any]:
    """Run a program with ``--tiny``; return what it wrote."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / program), "--tiny", "--out", str(out), *options],
        capture_output=True, text=True, check=False, timeout=1000,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert {"command", "machine", "versions", "tiny"} < set(found)
    return found


@pytest.mark.slow
def test_the_product_goes_from_rows_to_an_export_and_survives_kills(tmp_path: Path) -> None:
    found = tiny(tmp_path / "product.json", "product.py", "--parts", "sft,spin,resume")
    parts = found["parts"]
    assert list(parts) == ["sft", "spin", "resume"]
    assert all(part["ok"] for part in parts.values())
    assert parts["resume"]["kills"] == 2
    assert parts["spin"]["weights_equal"]


@pytest.mark.slow
def test_a_training_step_is_measured_beside_what_is_installed(tmp_path: Path) -> None:
    found = tiny(tmp_path / "step.json", "../step.py")
    assert found["missing"] in ([], ["trl"])
    assert len(found["contenders"]) == (3 if found["missing"] else 5)
    for figures in found["contenders"].values():
        assert figures["tokens_per_second"] > 0
        assert math.isfinite(figures["first_loss"])


@pytest.mark.slow
def test_growth_of_a_step_is_measured_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "growth.svg"
    found = tiny(tmp_path / "growth.json", "../step_growth.py", "--picture", str(picture))
    assert list(found["pairs"]) == ["1", "2"]
    assert list(found["lengths"]) == ["128", "256"]
    assert "pairs per step" in picture.read_text()


def test_tokens_of_the_distribution_pass_and_others_do_not(module: Any) -> None:
    distribution = module("distribution")
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3000, 50, generator=draw)
    tokens = torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0]
    uniforms = torch.rand(3000, generator=draw, dtype=torch.float64)

    def statistic(of: torch.Tensor) -> float:
        return distribution.statistic(distribution.rank_transforms(of, tokens, uniforms))

    assert statistic(logits) < distribution.CRITICAL
    assert statistic(logits / 2) > distribution.CRITICAL
    assert statistic(2 * logits) > distribution.CRITICAL


def test_a_process_that_fails_fails_its_part_with_its_last_lines(module: Any, tmp_path) -> None:
    parts = module("parts")
    bench = parts.Bench(tmp_path, True, None)
    with pytest.raises(parts.PartFailure, match="broken exits 3: no such thing"):
        bench.run("broken", "-c", "import sys; print('no such thing'); sys.exit(3)")
    bench.end = time.monotonic()
    with pytest.raises(parts.PartFailure, match="had not ended"):
        bench.run("hangs", "-c", "import threading; threading.Event().wait()")


def test_a_game_that_does_not_begin_at_log_two_fails_its_part(module: Any) -> None:
    parts = module("parts")
    good = {
        "first_losses": [math.log(2)], "first_batch_gaps": [0.0], "mean_losses": [0.5],
        "logits_gap": 0.0, "largest_logit": 1.0, "weights_equal": True, "layout": "shared",
    }  # fmt: skip
    parts.check_game(good, "fp32")
    wrong = {
        "first_losses": [0.6], "first_batch_gaps": [1e-3], "mean_losses": [0.7],
        "logits_gap": 0.1, "weights_equal": False, "layout": "padded",
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(parts.PartFailure):
            parts.check_game({**good, name: value}, "fp32")


def test_every_wheel_is_pinned_and_none_twice() -> None:
    # pip refuses two versions of a package among the wheels that it is given at once
    lists = (FOLDER / "wheels.txt", ROOT / "kernels/benchmarks/peers.txt")
    lines = [line for path in lists for line in path.read_text(encoding="utf-8").splitlines()]
    wheels = [line.split("#")[0].strip() for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+(post\d+)?", wheel) for wheel in wheels)
    assert len({wheel.split("==")[0] for wheel in wheels}) == len(wheels)
    assert any(wheel.startswith("mosaicml==") for wheel in wheels)


def test_wheels_have_the_measures_of_the_evidence_in_versions_that_the_extra_takes() -> None:
    lines = (FOLDER / "wheels.txt").read_text(encoding="utf-8").splitlines()
    wheels = dict(line.split("==") for line in lines if not line.startswith("#"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for line in extras["project"]["optional-dependencies"]["judge"]:
        needed = Requirement(line)
        assert wheels[needed.name] in needed.specifier
    # what scikit-learn asks for in turn, and joblib with it
    assert {"joblib", "cloudpickle", "narwhals", "threadpoolctl"} <= wheels.keys()
