"""The benchmarks on a CPU: their inputs are as peaked as they say, their script goes through."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "kernels" / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the benchmarks by name; they are scripts, no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What ``gpu.py --tiny`` printed and what it wrote."""
    out = tmp_path_factory.mktemp("benchmarks") / "new" / "folder" / "tiny"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=env
    )
    assert done.returncode == 0, done.stderr
    assert out.with_suffix(".md").read_text() == done.stdout.removesuffix("\n")
    return done.stdout, json.loads(out.with_suffix(".json").read_text())


def test_every_operation_is_measured_with_finite_errors(tiny: tuple[str, dict[str, Any]]) -> None:
    text, found = tiny
    for operation in ("a", "b forward", "b training", "c", "c pairs"):
        ours = [x for x in found["results"] if x["operation"] == operation and x["name"] == "ours"]
        assert len(ours) == 1, operation
        for x in ours:
            assert x["reason"] is None
            assert x["total_ms"] > 0
            assert x["errors"]
            assert all(math.isfinite(error) for error in x["errors"].values())
            assert max(x["errors"].values()) < 0.1, x  # bf16 products, tiny shapes
    assert text.count("| ours |") == 5


def test_a_peer_without_result_is_listed_with_its_reason(tiny: tuple[str, dict[str, Any]]) -> None:
    text, found = tiny
    for x in found["results"]:
        assert (x["reason"] is None) == (x["total_ms"] is not None), x
    assert "- Cut Cross-Entropy: needs a CUDA GPU" in text


def test_results_name_the_machine_the_versions_and_the_command(
    tiny: tuple[str, dict[str, Any]],
) -> None:
    text, found = tiny
    assert found["machine"]["torch"] == torch.__version__
    assert {"device", "driver", "cuda", "triton"} <= set(found["machine"])
    assert {"python", "liger-kernel", "trl"} <= set(found["versions"])
    assert "gpu.py --tiny" in found["command"]
    assert found["command"] in text
    assert found["ceilings"]["copy_gb_per_s"] > 0
    assert all(x["met"] is None for x in found["targets"])  # a CPU meets no target


def test_an_unknown_section_is_an_error_in_one_line(module: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        module("gpu").arguments(["--tiny", "--sections", "a,d"])
    assert stopped.value.code == "gpu.py: unknown section 'd'; known: ceilings, a, b, c."


def test_a_machine_without_a_gpu_is_an_error_in_one_line(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"needs a CUDA GPU .* --tiny"):
        module("gpu").arguments([])


def test_targets_are_judged_by_the_worst_case(module: Any) -> None:
    results = module("results")
    shapes = ("8192 x 4096 x 128256", "4096 x 4096 x 32000")

    def record(operation: str, case: str, name: str, total_ms: float, peak: float) -> dict:
        return {
            "operation": operation,
            "case": case,
            "name": name,
            "ours": name == "ours",
            "total_ms": total_ms,
            "peak_mib": peak,
        }

    records = [
        *(record("b forward", case, "ours", 11.0, 1) for case in shapes),
        record("b forward", shapes[0], "bare GEMM", 10.0, 0),
        record("b forward", shapes[1], "bare GEMM", 9.0, 0),
        record("c", shapes[0], "ours", 10.0, 5),
        record("c", shapes[0], "bare GEMM", 9.5, 0),
        record("c", shapes[0], "Liger FLCE 1", 20.0, 1),
        record("c", shapes[0], "Liger FLCE 8", 12.0, 6),
        record("c pairs", "1 x 2 x 2048, 50% response", "ours", 10.0, 5),
        record("c pairs", "1 x 2 x 2048, 50% response", "Liger DPO, one chunk", 19.0, 6),
    ]
    judged = results.targets(records, {})
    assert [x.met for x in judged] == [None, None, None, False, True, True, False, True, True]
    assert judged[3].measured == "0.82 at 4096 x 4096 x 32000"
    assert judged[5].measured == "1.20 at 8192 x 4096 x 128256"


def test_a_candidate_that_fails_leaves_the_others_alone(module: Any) -> None:
    timing = module("timing")
    calls = iter(range(100))

    def fails_at_the_third_call() -> None:
        if next(calls) == 2:
            raise RuntimeError("out of\n  luck")

    steps = {"good": timing.Step(lambda: None), "bad": timing.Step(fails_at_the_third_call)}
    found = {name: timing.Measured(name) for name in steps}
    timer = timing.Timer(torch.device("cpu"), repeats=7, seconds=60)
    for name, step in steps.items():
        timer.warm_up(step, found[name], lambda *_: {})
    timer.rounds(steps, found)
    assert (found["good"].rounds, found["good"].reason) == (7, None)
    assert (found["bad"].total_ms, found["bad"].reason) == (None, "RuntimeError: out of luck")


@pytest.mark.parametrize(("width", "vocab"), [(256, 8192), (512, 16384)])
def test_logits_are_peaked_like_a_language_models(module: Any, width: int, vocab: int) -> None:
    head = module("inputs").make_head(512, width, vocab, dtype=torch.float32)
    logits = (head.hidden @ head.weight.T).detach()
    logs = logits.log_softmax(1)
    logps = logs.gather(1, head.targets[:, None])[:, 0]
    assert -1 < logps.median() < -0.4
    assert -2.5 < logps.mean() < -1.3
    assert -20 < logps.min() < -10
    entropy = -(logs.exp() * logs).sum(1)
    assert 1 < entropy.mean() < 3
    best = logits.amax(1)
    assert best.quantile(0.05) > 8
    assert best.max() < 35


def test_padded_pairs_score_the_ends_of_whole_sequences(module: Any) -> None:
    head = module("inputs").make_padded_head(3, 8, 0.25, 16, 100)
    assert head.hidden.shape == (2 * 3 * 8, 16)
    assert head.cu_seqlens.tolist() == [0, 2, 4, 6, 8, 10, 12]
    # Pair 0's real response, its generated one (in the second half of all rows), pair 1's real one.
    assert head.rows[:6].tolist() == [6, 7, 30, 31, 14, 15]
    assert (head.padded_targets[:, :6] == -100).all()
    assert torch.equal(head.padded_targets.view(-1)[head.rows], head.targets)
    assert torch.equal(head.scored(), head.hidden[head.rows])
