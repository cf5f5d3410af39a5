"""What the compiler makes of the kernels, for three generations of GPUs; none need be there.

``compile_kernels.py`` compiles in a process of its own: in this one the kernels are interpreted.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import spin_kernels

SCRIPT = Path(__file__).parent / "compile_kernels.py"
SOURCES = Path(spin_kernels.__file__).parent
SOURCE = "".join(file.read_text() for file in sorted(SOURCES.glob("*.py")))
KERNELS = set(re.findall(r"^@triton\.jit\ndef (\w+_kernel)\(", SOURCE, re.MULTILINE))

SHARED_KIB = {80: 163, 90: 227, 100: 227}
"""Shared memory that one block may have, by architecture."""

REGISTERS_OF_A_MULTIPROCESSOR = 65536

SCALARS_OF_A_ROW = 5
"""Loads of single values that a row kernel may have: target, exact logit, norm, gradient."""

Report = dict[str, Any]


def compile_kernels(which: str, archs: list[int], cache: Path) -> list[Report]:
    """Return the reports of the script; the cache is new, so nothing in it can answer."""
    env = {**os.environ, "TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(SOURCES.parent)}
    del env["TRITON_INTERPRET"]
    command = [sys.executable, str(SCRIPT), which, *map(str, archs)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def check_limits(reports: list[Report], archs: list[int]) -> None:
    """Fail unless every kernel is among the reports and none spills or asks for too much."""
    assert {(x["kernel"], x["arch"]) for x in reports} == {(k, a) for k in KERNELS for a in archs}
    for x in reports:
        threads = 32 * x["num_warps"]
        # A value of rows at odd addresses, which are read two bytes at a time (Triton 3.9, sm_90).
        allowed = 2 if x["case"].endswith(("odd", "unaligned")) else 0
        assert x["spills"] <= allowed, x
        assert x["local_bytes"] <= 4 * allowed, x
        assert x["registers"] <= 255, x
        # They are given out to a warp by eight a thread.
        assert -(-x["registers"] // 8) * 8 * threads <= REGISTERS_OF_A_MULTIPROCESSOR, x
        assert x["shared_bytes"] <= SHARED_KIB[x["arch"]] * 1024, x
        assert x["has_hgmma"] or not x["has_dot"] or x["arch"] != 90, x
    assert any(x["has_dot"] for x in reports) == ("tl.dot" in SOURCE)


def check_wide_accesses(reports: list[Report]) -> None:
    """Fail unless rows of 16-byte boundaries are read, and written, 16 bytes at a time."""
    rows = [x for x in reports if x["case"].endswith(("aligned", "padded"))]
    rows = [x for x in rows if "unaligned" not in x["case"]]
    assert {x["kernel"] for x in rows} == {"rows_kernel", "rows_backward_kernel"}
    for x in rows:
        narrow = [load for load in x["loads"] if not re.search("128|256", load)]
        assert len(narrow) < len(x["loads"]), x
        assert len(narrow) <= SCALARS_OF_A_ROW, x
        if x["kernel"] == "rows_backward_kernel" or x["GRADIENT"]:
            assert any(re.search("128|256", store) for store in x["stores"]), x


@pytest.mark.parametrize(
    "archs",
    [[90], pytest.param([arch for arch in SHARED_KIB if arch != 90], marks=pytest.mark.slow)],
    ids=lambda archs: "-".join(map(str, archs)),
)
def test_largest_kernels_compile_without_spills(archs: list[int], tmp_path: Path) -> None:
    reports = compile_kernels("largest", archs, tmp_path)
    check_limits(reports, archs)
    check_wide_accesses(reports)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("arch", list(SHARED_KIB))
def test_every_kernel_compiles_without_spills(arch: int, tmp_path: Path) -> None:
    from spin_kernels import triton_ops

    reports = compile_kernels("all", [arch], tmp_path)
    check_limits(reports, [arch])
    check_wide_accesses(reports)
    of_kernel = {
        ("rows_kernel", False): triton_ops.ROW_CONFIGS,
        ("rows_kernel", True): triton_ops.GRADIENT_CONFIGS,
        ("rows_backward_kernel", None): triton_ops.BACKWARD_CONFIGS,
    }
    for (kernel, gradient), configs in of_kernel.items():
        found = [x for x in reports if (x["kernel"], x.get("GRADIENT")) == (kernel, gradient)]
        sizes = {(x["BLOCK"] * (4 if "float32" in x["case"] else 2), x["num_warps"]) for x in found}
        assert sizes == set(configs)


def test_a_report_tells_spills_and_the_matrix_units(tmp_path: Path) -> None:
    starved, product = compile_kernels("control", [90], tmp_path)
    assert starved["spills"]
    assert starved["local_bytes"]
    assert product["has_dot"]
    assert product["has_hgmma"]
