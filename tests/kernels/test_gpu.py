"""The operations on a GPU: truth, sizes, memory, and what must not make the host wait.

    export PYTHONPATH=kernels TRITON_INTERPRET=0
    python3 -m pytest -o addopts= -m gpu tests/kernels/test_gpu.py

Without ``-o addopts=``, pytest asks for pytest-timeout too.

A body takes the device, so that the interpreter on a CPU tries the bodies with small shapes first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import spin_kernels
from spin_kernels import (
    linear_log_softmax_gather,
    log_softmax_gather,
    log_softmax_gather_ref,
)
from tests.kernels.gpu_cases import (
    OPERATIONS,
    Inputs,
    check_against_truth,
    check_results,
    cosine,
    make_inputs,
    run_triton,
    transposed,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
OPTIONS: list[dict[str, float]] = [
    {},
    {"softcap": 5.0},
    {"temperature": 0.7},
    {"softcap": 5.0, "temperature": 1.5},
]


def on_gpu(test: Any) -> Any:
    """Mark a test as one of the GPU's."""
    blind = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
    wrong = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 keeps kernels off the GPU")
    return pytest.mark.gpu(wrong(blind(test)))


def row_budget(rows: int, v: int, dtype: torch.dtype) -> int:
    """Return the bytes of so many rows of logits."""
    return rows * -(-v // 16) * 16 * dtype.itemsize


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("v", [2, 1000, 32000, 50257, 128256])
@pytest.mark.parametrize("n", [0, 1, 127, 1025])
@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_truth(name: str, n: int, v: int, dtype: torch.dtype) -> None:
    inputs = make_inputs("cuda", dtype, n, v)
    check_against_truth(name, inputs)
    if n > 1 and name != "rows":
        check_against_truth(name, inputs, row_budget(n // 3, v, dtype))


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("v", [1000, 50257])
@pytest.mark.parametrize("name", ["linear", "pairs"])
def test_bias_cap_and_temperature_equal_truth(
    name: str, v: int, options: dict[str, float], dtype: torch.dtype
) -> None:
    inputs = make_inputs("cuda", dtype, 127, v, bias=True)
    check_against_truth(name, inputs, **options)
    check_against_truth(name, inputs, row_budget(40, v, dtype), **options)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_larger_than_the_budget_equal_truth(dtype: torch.dtype) -> None:
    inputs = make_inputs("cuda", dtype, 1025, 1000, bias=True)
    check_against_truth("pairs", inputs, row_budget(30, 1000, dtype))


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_strides_equal_truth(name: str, dtype: torch.dtype) -> None:
    check_strided("cuda", name, dtype, 127, 1000)


def check_strided(device: str, name: str, dtype: torch.dtype, n: int, v: int) -> None:
    x = make_inputs(device, dtype, n, v, bias=True).map(transposed)
    assert x.logits.stride() == (1, n)
    strided = Inputs(**{**vars(x), "targets": transposed(x.targets)})
    assert strided.targets.stride() == (2,)
    check_against_truth(name, strided)


@on_gpu
@pytest.mark.parametrize("inplace", [False, True])
def test_offsets_past_2_to_the_31_equal_truth(inplace: bool) -> None:
    check_last_rows("cuda", 16800, 128256, inplace)


def check_last_rows(device: str, n: int, v: int, inplace: bool) -> None:
    """Compare rows at the end of a large matrix with fp64."""
    logits = torch.randn(n, v, dtype=torch.bfloat16, device=device).requires_grad_()
    targets = torch.arange(n, device=device) * 7 % v
    coefficients = torch.linspace(-1, 2, n, device=device)
    last = slice(n - 5, n)
    rows = logits.detach()[last].double().requires_grad_()
    logps = log_softmax_gather(logits, targets, inplace_backward=inplace, impl="triton")
    (gradient,) = torch.autograd.grad(logps, logits, coefficients)
    true_logps = log_softmax_gather_ref(rows, targets[last])
    (truth,) = torch.autograd.grad(true_logps, rows, coefficients[last].double())
    torch.testing.assert_close(
        logps[last].detach().double(), true_logps.detach(), atol=1e-4, rtol=0
    )
    assert cosine(gradient[last], truth) > 0.9999
    assert (gradient.data_ptr() == logits.data_ptr()) == inplace


@on_gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_same_bits_twice(name: str) -> None:
    check_same_bits("cuda", name, 1025, 50257)


def check_same_bits(device: str, name: str, n: int, v: int) -> None:
    inputs = make_inputs(device, torch.bfloat16, n, v, bias=True)
    first, second = run_triton(name, inputs), run_triton(name, inputs)
    assert all(torch.equal(first[key], second[key]) for key in first)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_host_never_waits(name: str, dtype: torch.dtype) -> None:
    inputs = make_inputs("cuda", dtype, 300, 1000, bias=True)
    limits = {} if name == "rows" else {"memory_budget_bytes": row_budget(40, 1000, dtype)}
    run_triton(name, inputs, **limits)  # compiles
    with forbidden_waits():
        run_triton(name, inputs, **limits)
    with forbidden_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        inputs.targets.tolist()


@contextmanager
def forbidden_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.parametrize("name", ["rows", "linear"])
def test_compiles_as_one_graph(name: str) -> None:
    check_compiled("cuda", name, 127, 1000, "inductor")


def check_compiled(device: str, name: str, n: int, v: int, backend: str) -> None:
    run, op, _ = OPERATIONS[name]

    def scored(*args: Any) -> Tensor:
        return op(*args, impl="triton") * 2.0

    inputs = make_inputs(device, torch.bfloat16, n, v, bias=True)
    compiled = torch.compile(scored, fullgraph=True, backend=backend)
    ours, eager = run(compiled, inputs), run(scored, inputs)
    for key, value in eager.items():
        torch.testing.assert_close(ours[key], value, msg=key)


@on_gpu
@pytest.mark.parametrize("name", ["linear", "pairs"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_stays_within_the_budget(name: str, dtype: torch.dtype) -> None:
    n, v, d, budget = 8192, 32000, 256, 2**26
    x = make_inputs("cuda", dtype, n, v, d)
    inputs = Inputs(**{**vars(x), "logits": x.logits[:0]})
    limit = {"memory_budget_bytes": budget}
    del x
    run_triton(name, inputs, **limit)  # compiles, and cuBLAS takes its workspace
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run_triton(name, inputs, **limit)
    peak = torch.cuda.max_memory_allocated() - before
    # The weight's gradient: its sum in fp32, and what is added to it or returned.
    gradients = n * d * dtype.itemsize + v * d * (4 + dtype.itemsize)
    # Of a chunk of hidden rows: the scaled and the narrow one, the product; vectors over the rows.
    small = 12 * d * (budget // (v * dtype.itemsize)) + 100 * n
    assert budget / 2 < peak <= budget + gradients + small
    assert budget + gradients + small < n * v * dtype.itemsize


@on_gpu
@pytest.mark.parametrize("name", ["linear", "pairs"])
def test_autocast_multiplies_in_bf16_and_keeps_fp32_masters(name: str) -> None:
    check_autocast("cuda", name, 1025, 32000)


def check_autocast(device: str, name: str, n: int, v: int) -> None:
    run, _, ref = OPERATIONS[name]
    inputs = make_inputs(device, torch.float32, n, v, bias=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        ours, twin = run_triton(name, inputs), run(ref, inputs)
    gradients = [x for key, x in ours.items() if key.startswith("d_")]
    assert len(gradients) == 3
    assert all(x.dtype == torch.float32 for x in gradients)
    narrow = inputs.map(Tensor.bfloat16)
    check_results(ours, twin, run(ref, narrow.map(Tensor.double)), torch.bfloat16)


@on_gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_target_outside_the_vocabulary_stops_the_gpu(name: str) -> None:
    code = f"""
import torch
from tests.kernels.gpu_cases import make_inputs, run_triton
inputs = make_inputs("cuda", torch.bfloat16, 64, 1000)
run_triton({name!r}, inputs)
torch.cuda.synchronize()
print("the right ones pass", flush=True)
inputs.targets[5] = 1000
run_triton({name!r}, inputs)
torch.cuda.synchronize()
"""
    # The assertion ends the process's use of the GPU, so the process is another one.
    paths = [str(Path(__file__).parents[2]), str(Path(spin_kernels.__file__).parents[1])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "the right ones pass" in done.stdout, done.stderr[-2000:]
    assert done.returncode != 0
    assert "targets must be in [0, 1000) or -100" in done.stderr


@on_gpu
def test_scoring_can_be_captured_in_a_graph() -> None:
    x = make_inputs("cuda", torch.bfloat16, 127, 50257, bias=True)
    hidden = x.hidden.detach()

    def score() -> Tensor:
        return linear_log_softmax_gather(hidden, x.weight, x.targets, x.bias, impl="triton")

    with torch.no_grad():
        score()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = score()
        hidden.copy_(hidden.flip(0))
        graph.replay()
        torch.testing.assert_close(captured, score())


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
@pytest.mark.parametrize("name", OPERATIONS)
def test_runs_on_the_gpu_of_its_inputs(name: str) -> None:
    inputs = make_inputs("cuda:1", torch.bfloat16, 127, 1000)
    check_against_truth(name, inputs)
    assert torch.cuda.current_device() == 0


@pytest.mark.skipif(not INTERPRETED, reason="kernels take CPU tensors with TRITON_INTERPRET=1 only")
def test_bodies_hold_on_the_interpreter() -> None:
    for name in OPERATIONS:
        for n, v in ((0, 2), (6, 1000)):
            check_against_truth(name, make_inputs("cpu", torch.float32, n, v, d=8))
        check_strided("cpu", name, torch.float32, 6, 1000)
    check_same_bits("cpu", "pairs", 6, 1000)
    check_autocast("cpu", "linear", 6, 1000)
    check_last_rows("cpu", 6, 1000, inplace=True)
