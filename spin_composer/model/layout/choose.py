"""Which layout a run uses: the one of fewest tokens that gives the padded layout's log-probs.

What a model does with a table of segments is tried at the run's start, on sequences so long that a
window would hide something; what differs is padded.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from composer.utils import dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from spin_composer.data.pairs import Ids, Pair, PairBatch, collate_pairs
from spin_composer.errors import InputError
from spin_composer.fsdp import is_sharded
from spin_composer.model.layout.attention import install_segment_attention
from spin_composer.model.layout.base import Layout
from spin_composer.model.layout.packed import PackedLayout, SharedLayout
from spin_composer.model.layout.padded import PADDED
from spin_composer.model.unwrap import inner_model, plain_class
from spin_composer.settings.spin import LayoutName

log = logging.getLogger(__name__)

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout for layout in (SharedLayout(), PackedLayout(), PADDED)
}

_OLD_FAMILIES = frozenset(
    {
        "cohere", "deepseek_v3", "glm4", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3",
        "qwen3_moe",
    }
)  # fmt: skip
"""Model types that hand a mask of 4 dimensions on unchanged in transformers before 4.53, where each
model makes its own; tests/model/layout/test_packed.py tries them."""
_SHORT, _PAST_WINDOW = 96, 32
"""Tokens of the longest probe where no window bites, and beyond one."""
_TOLERANCE, _TOLERANCE_LOW_PRECISION = 1e-4, 0.05
"""Mean difference of a token's log-prob that rounding explains, in nats: of fp32 and of bf16 or
fp16. A wrong mask is off by 0.3 and more."""


def choose_layout(
    name: LayoutName,
    model: nn.Module,
    tokens: Ids,
    longest: int,
    score: Callable[[PairBatch, Layout], Tensor],
) -> Layout:
    """Return the layout of a run; a collective, in which every rank gives the same.

    Args:
        name: The setting ``layout``.
        model: A model with a scoring head, inside FSDP or not.
        tokens: Ids of real rows, to try layouts with.
        longest: Tokens of the longest sequence that the run can make.
        score: Returns token log-probs [N] of a batch in a layout.

    Raises:
        InputError: ``name`` is a layout that the model cannot have, or the attempt failed where it
            cannot be undone (a sharded model).
    """
    if name == "padded":
        return PADDED
    wanted = LAYOUTS["shared" if name == "auto" else name]
    reason = unsupported_reason(inner_model(model), longest) or _try(
        wanted, model, tokens, longest, score
    )
    if reason is None:
        log.info("Pairs are laid out without padding: layout %s", wanted.name)
        return wanted
    if name != "auto":
        raise InputError(
            f"algorithms.spin.layout={name} cannot be used: {reason}. Use auto or padded."
        )
    log.info("Pairs are padded (layout padded): %s", reason)
    return PADDED


def unsupported_reason(model: PreTrainedModel, longest: int) -> str | None:
    """Return why a model takes no table of segments, or None; what it shows by itself.

    Args:
        model: Of :func:`inner_model`.
        longest: Tokens of the longest sequence that the run can make.
    """
    config: Any = model.config
    name = plain_class(model).__name__
    source = sys.modules[plain_class(model).__module__]
    if not hasattr(source, "ALL_ATTENTION_FUNCTIONS"):
        return f"{name} has attention of its own, which takes no other function"
    if find_spec("transformers.masking_utils") is None and config.model_type not in _OLD_FAMILIES:
        return f"{name} of transformers {transformers.__version__} may change its mask on the way"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{name} takes no positions"
    kinds = set(getattr(config, "layer_types", None) or ())
    others = sorted(kinds - {"full_attention", "sliding_attention", "chunked_attention"})
    if others:
        return f"{name} has layers that are not attention ({', '.join(others)})"
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and longest > chunk:
        return f"sequences of up to {longest} tokens pass {name}'s attention chunks of {chunk}"
    return None


def probe_pairs(config: Any, tokens: Ids, longest: int) -> list[Pair]:
    """Return two pairs to try a layout with: a short one, and one past windows that the run passes.

    Args:
        config: The model's.
        tokens: Ids of real rows; used again and again if they are few.
        longest: Tokens of the longest sequence that the run can make.
    """
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    length = max([_SHORT, *(window + _PAST_WINDOW for window in windows if window)])
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if "longrope" in str(scaling) or "dynamic" in str(scaling):
        length = longest  # frequencies change with the longest position
    length = max(8, min(length, longest))
    ids = torch.from_numpy(tokens).repeat(1 + 2 * length // len(tokens)).numpy()
    prompt = length // 3
    second = ids[length : 2 * length - prompt - 1]
    long = Pair(ids[:prompt], ids[prompt:length], second)
    short = Pair(ids[1:4], ids[4:6], ids[3:8])
    return [long, short]


def _try(
    layout: Layout,
    model: nn.Module,
    tokens: Ids,
    longest: int,
    score: Callable[[PairBatch, Layout], Tensor],
) -> str | None:
    """Return why a layout cannot be used, by trying it; None if it can."""
    inner = inner_model(model)
    install_segment_attention(inner)
    pairs = probe_pairs(inner.config, tokens, longest)
    alone = torch.cat([score(collate_pairs([pair]), PADDED) for pair in pairs])
    try:
        together = score(collate_pairs(pairs), layout)
    except (torch.OutOfMemoryError, InputError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if is_sharded(model):
            raise InputError(
                f"algorithms.spin.layout: {layout.name} failed on {plain_class(inner).__name__} "
                f"({said}). Set layout to padded."
            ) from error
        return f"{plain_class(inner).__name__} fails with a table of segments ({said})"
    difference = _mean_difference(together, alone)
    if difference <= _tolerance(alone.device, inner):
        return None
    return (
        f"{plain_class(inner).__name__}'s log-probs differ by {difference:.2g} nats a token "
        f"between layouts {layout.name} and padded"
    )


def _mean_difference(one: Tensor, other: Tensor) -> float:
    """Return the mean |difference|, the largest of all ranks; not finite counts as infinite."""
    found = (one.double() - other.double()).abs().mean().nan_to_num(torch.inf).view(1)
    dist.all_reduce(found, reduce_operation="MAX")
    return float(found)


def _tolerance(device: torch.device, model: PreTrainedModel) -> float:
    low = torch.is_autocast_enabled(device.type) or any(
        p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()
    )
    return _TOLERANCE_LOW_PRECISION if low else _TOLERANCE
