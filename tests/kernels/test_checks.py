"""A wrong argument is named with what it got, before anything is computed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from spin_kernels import (
    linear_log_softmax_gather,
    linear_pair_loss,
    log_softmax_gather,
)
from spin_kernels.checks import matmul_dtype
from spin_kernels.dispatch import resolve_impl

CPU = torch.device("cpu")
BAD_TARGETS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"targets": torch.tensor([0, 9, 1])}, ValueError, r"targets\[1\] .*\[0, 9\).*got 9"),
    ({"targets": torch.tensor([0, 1, -1])}, ValueError, r"targets\[2\] .*or -100, got -1"),
    ({"targets": torch.tensor([2**40, 1, 1])}, ValueError, r"targets\[0\].*got 1099511627776"),
    ({"targets": torch.tensor([0, 1])}, ValueError, r"targets must have shape \(3,\), got \(2,\)"),
    ({"targets": torch.zeros(3, 1).long()}, ValueError, r"targets must have .* got \(3, 1\)"),
    ({"targets": [0, 1, 2]}, TypeError, "targets must be a tensor, got list"),
    ({"targets": torch.zeros(3)}, TypeError, "targets must be int64, got torch.float32"),
    ({"targets": torch.zeros(3).int()}, TypeError, "targets must be int64, got torch.int32"),
    (
        {"targets": torch.zeros(3, device="meta").long()},
        ValueError,
        "targets must be on cpu like the rows, got meta",
    ),
]
BAD_IMPL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"impl": "cuda"}, ValueError, r"impl must be one of \('auto', .*got 'cuda'"),
    ({"impl": None}, ValueError, "impl must be one of .*got None"),
]
BAD_HEAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": torch.zeros(3, 4, 1)}, ValueError, r"hidden must have 2 .* got shape \(3, 4, 1\)"),
    ({"hidden": torch.zeros(3, 4).long()}, TypeError, "hidden must be floating point, got torch.i"),
    ({"hidden": torch.zeros(3, 4).to(torch.float8_e4m3fn)}, TypeError, "hidden .*float8_e4m3fn"),
    ({"weight": torch.zeros(9)}, ValueError, r"weight must have 2 dimensions, got shape \(9,\)"),
    ({"weight": torch.zeros(9, 4).int()}, TypeError, "weight must be floating .* got torch.int32"),
    ({"weight": torch.zeros(9, 5)}, ValueError, r"weight .* D=4 of hidden, got \(9, 5\)"),
    ({"weight": torch.zeros(9, 4).double()}, TypeError, "weight must be torch.float32 .*float64"),
    ({"weight": torch.zeros(9, 4, device="meta")}, ValueError, "weight must be on cpu .*got meta"),
    ({"weight": torch.zeros(0, 4)}, ValueError, "at least one entry, got V=0"),
    ({"bias": torch.zeros(8)}, ValueError, r"bias must have shape \(9,\), got \(8,\)"),
    ({"bias": torch.zeros(9, 1)}, ValueError, r"bias must have shape \(9,\), got \(9, 1\)"),
    ({"bias": torch.zeros(9).half()}, TypeError, "bias must be torch.float32 .*got torch.float16"),
    ({"bias": torch.zeros(9, device="meta")}, ValueError, "bias must be on cpu .*got meta"),
    ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
    ({"temperature": float("nan")}, ValueError, "temperature must be positive .* got nan"),
    ({"temperature": None}, TypeError, "temperature must be a number, got NoneType"),
    ({"temperature": torch.ones(())}, TypeError, "temperature must be a number, got Tensor"),
    (
        {"memory_budget_bytes": 1e6},
        TypeError,
        "memory_budget_bytes must be an integer, got 1000000.0",
    ),
    ({"softcap": -1.0}, ValueError, "softcap must be positive and finite, got -1.0"),
    ({"softcap": float("inf")}, ValueError, "softcap must be positive and finite, got inf"),
    ({"memory_budget_bytes": 0}, ValueError, "memory_budget_bytes must be positive .*got 0"),
]
BAD_PAIRS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"cu_seqlens": [0, 1, 3]}, TypeError, "cu_seqlens must be a tensor, got list"),
    ({"pair_loss": None}, TypeError, "pair_loss must be callable, got NoneType"),
    (
        {"pair_weights": torch.ones(1, requires_grad=True)},
        ValueError,
        "pair_weights must not require a gradient.*detach",
    ),
    ({"cu_seqlens": torch.tensor([0.0, 1, 3])}, TypeError, "cu_seqlens must be .* torch.float32"),
    (
        {"cu_seqlens": torch.tensor([[0, 1, 3]])},
        TypeError,
        r"cu_seqlens must be .*got shape \(1, 3\)",
    ),
    ({"cu_seqlens": torch.tensor([0, 3])}, ValueError, r"2B \+ 1 entries, .* got 2\."),
    ({"cu_seqlens": torch.tensor([]).long()}, ValueError, r"2B \+ 1 entries, .* got 0\."),
    ({"cu_seqlens": torch.tensor([0, 4, 3])}, ValueError, "must not decrease, got 4 followed by 3"),
    ({"cu_seqlens": torch.tensor([0, 1, 2])}, ValueError, "from 0 to the 3 rows .* got 0 to 2"),
    ({"cu_seqlens": torch.tensor([1, 1, 3])}, ValueError, "from 0 to the 3 rows .* got 1 to 3"),
    ({"pair_weights": torch.ones(2)}, ValueError, r"pair_weights must be \[1\] .*got shape \(2,\)"),
    ({"pair_weights": torch.ones(1).long()}, ValueError, "pair_weights must .* torch.int64"),
    (
        {"pair_weights": torch.ones(1, device="meta")},
        ValueError,
        "pair_weights must be on cpu like hidden, got meta",
    ),
]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        *BAD_TARGETS,
        *BAD_IMPL,
        (
            {"logits": torch.zeros(3, 1).expand(3, 9), "inplace_backward": True},
            ValueError,
            r"inplace_backward .* strides \(1, 0\) of shape \(3, 9\)",
        ),
        ({"logits": torch.zeros(3)}, ValueError, r"logits must have 2 .* got shape \(3,\)"),
        ({"logits": torch.zeros(3, 9).long()}, TypeError, "logits must be floating point"),
        ({"logits": torch.zeros(3, 0)}, ValueError, "at least one entry, got V=0"),
        ({"logits": torch.zeros(3, 9).double(), "impl": "triton"}, TypeError, "got torch.float64"),
    ],
)
def test_log_softmax_gather_names_a_wrong_argument(
    change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    given = {"logits": torch.zeros(3, 9), "targets": torch.zeros(3).long()}
    with pytest.raises(kind, match=message):
        log_softmax_gather(**{**given, **change})


def _head() -> dict[str, Tensor]:
    return {
        "hidden": torch.zeros(3, 4),
        "weight": torch.zeros(9, 4),
        "targets": torch.zeros(3).long(),
    }


@pytest.mark.parametrize(("change", "kind", "message"), [*BAD_TARGETS, *BAD_IMPL, *BAD_HEAD])
def test_linear_log_softmax_gather_names_a_wrong_argument(
    change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        linear_log_softmax_gather(**{**_head(), **change})


@pytest.mark.parametrize(
    ("change", "kind", "message"), [*BAD_TARGETS, *BAD_IMPL, *BAD_HEAD, *BAD_PAIRS]
)
def test_linear_pair_loss_names_a_wrong_argument(
    change: dict[str, Any], kind: type[Exception], message: str
) -> None:
    pairs = {"cu_seqlens": torch.tensor([0, 1, 3]), "pair_loss": lambda real, generated: real}
    with pytest.raises(kind, match=message):
        linear_pair_loss(**{**_head(), **pairs, **change})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_auto_is_pytorch_on_the_cpu(dtype: torch.dtype) -> None:
    assert resolve_impl("auto", CPU, dtype) == "torch"
    assert resolve_impl("torch", CPU, dtype) == "torch"


def test_auto_is_triton_on_a_gpu_except_for_fp64() -> None:
    gpu = torch.device("cuda")
    assert resolve_impl("auto", gpu, torch.bfloat16) == "triton"
    assert resolve_impl("auto", gpu, torch.float64) == "torch"


def test_triton_rejects_fp64() -> None:
    doubles = {name: x.double() if name != "targets" else x for name, x in _head().items()}
    with pytest.raises(TypeError, match=r"impl='triton' supports .*got torch.float64"):
        linear_log_softmax_gather(**doubles, impl="triton")


def test_triton_on_a_cpu_without_interpreter_is_an_error_and_not_pytorch() -> None:
    program = (
        "import torch, spin_kernels as s\n"
        "t = torch.zeros(3).long()\n"
        "assert torch.isfinite(s.log_softmax_gather(torch.zeros(3, 9), t)).all()\n"
        "s.log_softmax_gather(torch.zeros(3, 9), t, impl='triton')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ValueError: impl='triton' needs tensors on a GPU, got cpu" in done.stderr


def test_product_is_in_the_input_dtype_or_in_the_one_of_autocast() -> None:
    masters = torch.zeros(1)
    assert matmul_dtype(masters) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert matmul_dtype(masters) == torch.bfloat16
        assert matmul_dtype(masters.half()) == torch.bfloat16
        assert matmul_dtype(masters.double()) == torch.float64


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """Return a mesh of this process alone; a test before may have left a group of it."""
    is_own = not dist.is_initialized()
    if is_own:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    if is_own:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("op", "name"),
    [
        *((log_softmax_gather, name) for name in ("logits", "targets")),
        *((linear_log_softmax_gather, name) for name in ("hidden", "weight", "targets", "bias")),
        *((linear_pair_loss, name) for name in ("hidden", "weight", "targets", "bias")),
        *((linear_pair_loss, name) for name in ("cu_seqlens", "pair_weights")),
    ],
)
def test_a_dtensor_is_named_with_the_remedy_in_one_line(
    op: Callable[..., Any], name: str, mesh: DeviceMesh
) -> None:
    head = {**_head(), "bias": torch.zeros(9)}
    given: dict[str, Any] = {
        log_softmax_gather: {"logits": torch.zeros(3, 9), "targets": torch.zeros(3).long()},
        linear_log_softmax_gather: head,
        linear_pair_loss: {
            **head,
            "cu_seqlens": torch.tensor([0, 1, 3]),
            "pair_loss": lambda real, generated: generated - real,
            "pair_weights": torch.ones(1),
        },
    }[op]
    given[name] = distribute_tensor(given[name], mesh, [Shard(0)])
    with pytest.raises(TypeError, match=f"^{name} must be a plain tensor, got a DTensor") as raised:
        op(**given)
    assert "inside the module's forward" in str(raised.value)
    assert f"{name}.full_tensor()" in str(raised.value)
    assert "\n" not in str(raised.value)
    op(**{**given, name: given[name].full_tensor()})


def test_a_weight_sharded_by_fsdp_is_rejected_outside_forward_and_accepted_inside(
    mesh: DeviceMesh,
) -> None:
    class Head(torch.nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return linear_log_softmax_gather(hidden, self.weight, targets)

    hidden, targets = torch.ones(3, 4), torch.tensor([0, 8, 4])
    head = Head(4, 9, bias=False)
    expected = linear_log_softmax_gather(hidden, head.weight.detach(), targets)
    fully_shard(head, mesh=mesh)
    with pytest.raises(TypeError, match=r"^weight must be a plain tensor.*weight\.full_tensor\(\)"):
        linear_log_softmax_gather(hidden, head.weight, targets)
    assert torch.equal(head(hidden), expected)
