"""The pairs of a layout's trial at a run's start, and how much their log-probs may differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from spin_composer.data.pairs import Ids, Pair, PairBatch

_SHORT = 48
"""Tokens of the longest sequence of the trial if no window applies."""
_TOLERANCE, _TOLERANCE_LOW_PRECISION = 1e-4, 0.05
"""Largest mean difference of a token's log-prob, in nats, that rounding explains: in fp32, and in
bf16 and fp16. The mean is taken over each part that a wrong mask would change: each sequence, and
its tokens past the window."""


def window_of(model: PreTrainedModel, longest: int) -> int | None:
    """Return the model's sliding window if it is shorter than the longest sequence, else None."""
    config: PretrainedConfig = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    if kinds is None and not getattr(config, "use_sliding_window", True):
        return None
    return window if window and window < longest else None


def probe_pairs(
    config: PretrainedConfig, window: int | None, tokens: Ids, longest: int
) -> list[Pair]:
    """Return two pairs for the trial: one as long as needed to exceed the window, and a short one.

    Args:
        config: The model's text config.
        window: From :func:`window_of`.
        tokens: Ids of real rows; repeated if there are few.
        longest: Tokens of the longest sequence that the run can contain.
    """
    length = _SHORT if window is None else max(_SHORT, 2 * window)
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if "longrope" in str(scaling) or "dynamic" in str(scaling):
        length = longest  # frequencies change with the longest position
    length = max(8, min(length, longest))
    ids = torch.from_numpy(tokens).repeat(1 + 2 * length // len(tokens)).numpy()
    prompt = length // 3
    second = ids[length : 2 * length - prompt - 1]
    long = Pair(ids[:prompt], ids[prompt:length], second)
    few = min(8, longest // 3)
    short = Pair(ids[1 : 1 + few], ids[4 : 4 + min(12, longest - few)], ids[3 : 3 + few])
    return [long, short]


def parts_of(batch: PairBatch, window: int | None) -> list[slice]:
    """Return the scored tokens of each sequence, and those of them past the window."""
    parts = []
    sides = zip(pairwise(batch["seqlen_bounds"]), pairwise(batch["scored_bounds"]), strict=True)
    for (start, end), (first, last) in sides:
        parts.append(slice(first, last))
        past = 0 if window is None else end - start - window
        if past > 0:
            parts.append(slice(max(first, last - past), last))
    return parts


def mean_difference(one: Tensor, other: Tensor) -> float:
    """Return the mean |difference|, the largest over ranks; infinite if it is not finite."""
    found = (one.double() - other.double()).abs().mean().nan_to_num(torch.inf).view(1)
    dist.all_reduce(found, reduce_operation="MAX")
    return float(found)


def tolerance(device: torch.device, model: PreTrainedModel) -> float:
    """Return the mean difference of a token's log-prob, in nats, that rounding explains."""
    low = torch.is_autocast_enabled(device.type) or any(
        p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()
    )
    return _TOLERANCE_LOW_PRECISION if low else _TOLERANCE


@contextmanager
def without_tf32() -> Iterator[None]:
    """Turn off TF32, which Composer turns on: its rounding error could hide a wrong mask."""
    matmul: Any = torch.backends.cuda.matmul
    # From torch 2.9 on; there, reading allow_tf32 fails if fp32_precision was set.
    switch, off = "fp32_precision", "ieee"
    if not hasattr(matmul, switch):
        switch, off = "allow_tf32", False
    before = getattr(matmul, switch)
    setattr(matmul, switch, off)
    try:
        yield
    finally:
        setattr(matmul, switch, before)
