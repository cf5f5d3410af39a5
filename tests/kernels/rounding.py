"""Triton's interpreter made to round fp32 to bf16 as GPUs do.

Triton 3.3's interpreter cuts the lower bits off, and where it is told to round it loses the carry
into the exponent. GPUs round to nearest, ties to even: without this the tests would measure the
interpreter's errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_convert_float = interpreter._convert_float


def convert_float(
    values: Any, source: tl.dtype, target: tl.dtype, rounding_mode: Any
) -> np.ndarray:
    """Stand in for the interpreter's conversion of floats, which it calls with these."""
    if (source, target) == (tl.float32, tl.bfloat16):
        return to_bfloat16_bits(values)
    return _convert_float(values, source, target, rounding_mode)


def to_bfloat16_bits(values: Any) -> np.ndarray:
    """Return the bits of fp32 values rounded to the nearest bf16, ties to even."""
    wide = np.asarray(values, dtype=np.float32)
    bits = np.frombuffer(wide.tobytes(), dtype=np.uint32).reshape(wide.shape)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(wide), 0x7FC0, rounded).astype(np.uint16)
