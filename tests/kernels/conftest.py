"""What every test of the kernels stands on: both implementations, and an honest interpreter."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from spin_kernels import triton_ops


@pytest.fixture(params=["torch", "triton"])
def impl(request: pytest.FixtureRequest) -> str:
    """Run a test with each implementation; Triton's kernels by its interpreter."""
    if request.param == "triton" and not triton_ops.IS_INTERPRETED:
        pytest.skip("Triton runs kernels on CPU tensors only with TRITON_INTERPRET=1")
    return request.param


@pytest.fixture(autouse=True)
def _interpreter_like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Round as a GPU does where kernels are interpreted, and keep padding lanes silent."""
    if not triton_ops.IS_INTERPRETED:
        yield
        return
    import numpy as np
    from triton.runtime import interpreter

    from tests.kernels.rounding import convert_float

    monkeypatch.setattr(interpreter, "_convert_float", convert_float)
    # Lanes beyond the vocabulary hold -inf, which meets exp and 0 before a mask drops it.
    with np.errstate(over="ignore", invalid="ignore"):
        yield


@pytest.fixture
def _launches_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Free what a launch held: the interpreter's cycles keep its tensors until a collection."""
    launch = triton_ops._launch

    def launch_and_collect(*args: Any, **options: Any) -> None:
        launch(*args, **options)
        gc.collect()

    monkeypatch.setattr(triton_ops, "_launch", launch_and_collect)
    gc.collect()
    gc.freeze()  # a collection looks at what is new only: 1 ms in place of 100
    yield
    gc.unfreeze()
