"""Compiles the kernels for GPUs that need not be there, and prints what the machine code holds.

    env -u TRITON_INTERPRET python compile_kernels.py largest|all|control 80 90 100

The numbers are architectures, sm_80 and so on; each line printed is the JSON of one compiled
kernel. Which kernels there are is asked of ``triton_ops``: its functions are called with meta
tensors, as the operators call them, and where it would launch, Triton's own just-in-time compiler
specializes and compiles. "largest" are the largest configurations in bf16, whose registers are the
scarcest; "control" is a kernel that spills and one of the matrix units.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from spin_kernels import triton_ops
from spin_kernels.shape import LogitScale, padded_vocab

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
NUM_ROWS, VOCAB, DEPTH = 24, 1000, 4096
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

# Of log_softmax_gather's logits, which a caller made; and of the chunks that the linear ones make.
LOGITS_LAYOUTS = ("aligned", "odd", "unaligned", "transposed", "one")
CHUNK_LAYOUTS = ("aligned", "padded")


class Target:
    """As much of a driver as the compiler asks for: one device of a given architecture."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # the compiler keeps what it made by device

    def get_current_stream(self, device: int) -> int:
        return device


class Compiler:
    """Takes the place of ``triton_ops._launch``: compiles instead, and reports new machine code."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.case = ""
        self.extra: dict[str, Any] = {}

    def launch(self, kernel: Any, num_programs: int, *args: Any, **meta: Any) -> None:
        meta = {**meta, **self.extra}
        compiled = kernel.run(*args, grid=(num_programs,), warmup=True, **meta)
        if compiled.hash not in self.seen:
            self.seen.add(compiled.hash)
            print(json.dumps({"case": self.case, **report(compiled), **meta}), flush=True)


def report(compiled: Any) -> dict[str, Any]:
    """Return what the machine code of a compiled kernel uses."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", text, re.MULTILINE)
    return {
        "kernel": compiled.metadata.name,
        "arch": compiled.metadata.target.arch,
        "registers": usage["REG"],
        "local_bytes": usage["STACK"] + usage["LOCAL"],
        "shared_bytes": max(usage["SHARED"], compiled.metadata.shared),
        "spills": sum(x.startswith(("STL", "LDL")) for x in code),
        "loads": sorted(x for x in code if x.startswith("LDG")),
        "stores": sorted(x for x in code if x.startswith("STG")),
        "has_dot": "tt.dot" in compiled.asm["ttir"],
        "has_hgmma": any(x.startswith("HGMMA") for x in code),
    }


def empty(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def logits(layout: str, block: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Return a matrix of logits [C, W] in this layout, and V <= ``block``."""
    if layout == "one":
        return empty(NUM_ROWS, 1, dtype=dtype), 1
    if layout == "aligned":
        return empty(NUM_ROWS, block, dtype=dtype), block
    vocab = block - 1
    if layout == "padded":
        return empty(NUM_ROWS, padded_vocab(vocab), dtype=dtype), vocab
    if layout == "transposed":
        return empty(vocab, NUM_ROWS, dtype=dtype).T, vocab
    z = empty(NUM_ROWS + 1, vocab, dtype=dtype)
    return z[1:] if layout == "unaligned" else z, vocab


def row_cases(which: str) -> list[tuple[str, torch.dtype, bool, float | None]]:
    """Return layout, dtype, whether there are exact logits, and the cap, as the operators do."""
    if which == "largest":
        return [("padded", BF16, True, 30.0)]
    dtypes = BF16, FP16, FP32
    chunks = product(CHUNK_LAYOUTS, dtypes, (None, 30.0))
    return [
        *((layout, dtype, False, None) for layout, dtype in product(LOGITS_LAYOUTS, dtypes)),
        *((layout, dtype, dtype != FP32, cap) for layout, dtype, cap in chunks),
    ]


def compile_rows(which: str, compiler: Compiler) -> None:
    """Launch the kernels that go over rows of logits, in each configuration that they have."""
    targets, row = empty(NUM_ROWS, dtype=torch.int64), empty(NUM_ROWS)
    forward, gradient, backward = (
        configs[-1:] if which == "largest" else configs
        for configs in (
            triton_ops.ROW_CONFIGS,
            triton_ops.GRADIENT_CONFIGS,
            triton_ops.BACKWARD_CONFIGS,
        )
    )
    for layout, dtype, with_exact, cap in row_cases(which):
        exact, scale = row if with_exact else None, LogitScale(softcap=cap)
        compiler.case = f"{dtype} {layout}"
        for size, _ in forward:
            z, vocab = logits(layout, size // dtype.itemsize, dtype)
            triton_ops.logps(z, vocab, targets, exact, scale, keep=True)
        for size, _ in gradient if layout in CHUNK_LAYOUTS else ():
            z, vocab = logits(layout, size // dtype.itemsize, dtype)
            triton_ops.logps_and_gradient_(z, vocab, targets, exact, scale)
        for size, _ in backward:
            z, vocab = logits(layout, size // dtype.itemsize, dtype)
            for out in (z, empty(*z.shape, dtype=dtype)):
                triton_ops.logps_backward(z, vocab, targets, exact, (row, row), row, scale, out)


def compile_others(which: str, compiler: Compiler) -> None:
    """Launch the kernels that do not go over rows of logits."""
    targets = empty(NUM_ROWS, dtype=torch.int64)
    compiler.case = "sums"
    triton_ops.targets_ok(targets, VOCAB)
    triton_ops.segment_sums(empty(NUM_ROWS), empty(NUM_ROWS + 1, dtype=torch.int64))
    cases = product((BF16, FP16, FP32), (DEPTH, 5, 1), (False, True))
    for dtype, depth, transposed in [(BF16, DEPTH, False)] if which == "largest" else cases:
        compiler.case = f"{dtype} depth {depth}" + " transposed" * transposed
        hidden, weight = empty(NUM_ROWS, depth, dtype=dtype), empty(VOCAB, depth, dtype=dtype)
        triton_ops.scale_(hidden, empty())
        if transposed:
            hidden, weight = hidden.T.contiguous().T, weight.T.contiguous().T
        for bias in (None, empty(VOCAB, dtype=dtype)):
            triton_ops.target_logits(hidden, weight, bias, targets)


@triton.jit
def dot_kernel(a_ptr, b_ptr, out_ptr, BLOCK: tl.constexpr):
    """Multiply two square matrices of one block."""
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    tl.store(out_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


def compile_control(compiler: Compiler) -> None:
    """Compile one kernel with too few registers, and one with a product of matrices."""
    z, vocab = logits("aligned", triton_ops.ROW_CONFIGS[-1][0] // BF16.itemsize, BF16)
    targets = empty(NUM_ROWS, dtype=torch.int64)
    compiler.extra = {"maxnreg": 32}
    triton_ops.logps(z, vocab, targets, None, LogitScale(), keep=True)
    compiler.extra = {}
    a = empty(128, 128, dtype=BF16)
    compiler.launch(dot_kernel, 1, a, a, empty(128, 128), BLOCK=128, num_warps=4)


def main(which: str, archs: list[int]) -> None:
    """Compile for each architecture and print a line a kernel."""
    compiler = Compiler()
    triton_ops._launch = compiler.launch
    for arch in archs:
        driver.set_active(Target(arch))
        if which == "control":
            compile_control(compiler)
        else:
            compile_rows(which, compiler)
            compile_others(which, compiler)


if __name__ == "__main__":
    main(sys.argv[1], [int(x) for x in sys.argv[2:]])
