"""Choice of a run's layout: the one with the fewest tokens whose log-probs equal the padded one's.

At the run's start the model is tried with a table of segments, on sequences longer than its sliding
window. If its log-probs differ, pairs are padded.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import pairwise

import torch
import transformers
from composer.utils import dist
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from spin_composer.data.pairs import Ids, Pair, PairBatch, collate_pairs
from spin_composer.errors import InputError
from spin_composer.fsdp import is_sharded
from spin_composer.model.layout.attention import install_segment_attention, window_passed
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
"""Model types that pass on a mask of 4 dimensions unchanged before transformers 4.53, in which each
model builds its own; tests/model/layout/test_packed.py tries them."""
_SHORT = 96
"""Tokens of the longest sequence of the trial if no window applies."""
_TOLERANCE, _TOLERANCE_LOW_PRECISION = 1e-4, 0.05
"""Largest mean difference of a token's log-prob, in nats, that rounding explains: in fp32, and in
bf16, fp16 and TF32. The mean is taken over each part that a wrong mask would change: each sequence,
and its tokens past the window."""
_READ_THE_ROW = ("attn_temperature_tuning", "use_logn_attn")
"""Settings of models whose attention depends on a token's position in its row."""


def choose_layout(
    name: LayoutName,
    model: nn.Module,
    tokens: Ids,
    longest: int,
    score: Callable[[PairBatch, Layout], Tensor],
) -> Layout:
    """Return the layout of a run, the same on every rank; a collective.

    Args:
        name: The setting ``layout``.
        model: A model with a scoring head, inside FSDP or not.
        tokens: Ids of real rows, for the trial.
        longest: Tokens of the longest sequence that the run can contain.
        score: Returns the token log-probs [N] of a batch in a layout.

    Raises:
        InputError: The model does not support the layout ``name``, or the trial failed on a sharded
            model, which cannot go on after that.
    """
    if name == "padded":
        return PADDED
    wanted = LAYOUTS["shared" if name == "auto" else name]
    reason = unsupported_reason(inner_model(model), longest) or _probe_layout(
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
    """Return why a model cannot use a segment table, as its config and code show, or None.

    Args:
        model: The Hugging Face model, from :func:`inner_model`.
        longest: Tokens of the longest sequence that the run can contain.
    """
    config: PretrainedConfig = model.config.get_text_config()
    name = plain_class(model).__name__
    source = sys.modules[plain_class(model).__module__]
    if not hasattr(source, "ALL_ATTENTION_FUNCTIONS"):
        return f"{name} has its own attention, which cannot be replaced"
    if find_spec("transformers.masking_utils") is None and config.model_type not in _OLD_FAMILIES:
        return f"{name} in transformers {transformers.__version__} may change the mask"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{name} does not accept position_ids"
    kinds = set(getattr(config, "layer_types", None) or ())
    attention = {"attention", "full_attention", "sliding_attention", "chunked_attention"}
    others = sorted(kinds - attention)
    if others:
        return f"{name} has non-attention layers ({', '.join(others)})"
    for setting in _READ_THE_ROW:
        if getattr(config, setting, False):
            return f"{name} scales attention by a token's position in its row ({setting})"
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and longest > chunk:
        return f"sequences of up to {longest} tokens exceed {name}'s attention chunks of {chunk}"
    return None


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


def _probe_layout(
    layout: Layout,
    model: nn.Module,
    tokens: Ids,
    longest: int,
    score: Callable[[PairBatch, Layout], Tensor],
) -> str | None:
    """Try a layout; return why it cannot be used, or None."""
    inner = inner_model(model)
    name = plain_class(inner).__name__
    layers = install_segment_attention(inner)
    window = window_of(inner, longest)
    pairs = probe_pairs(inner.config.get_text_config(), window, tokens, longest)
    alone = torch.cat([score(collate_pairs([pair]), PADDED) for pair in pairs])
    batch = collate_pairs(pairs)
    try:
        together = score(batch, layout)
    except (torch.OutOfMemoryError, InputError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if is_sharded(model):
            raise InputError(
                f"algorithms.spin.layout: {layout.name} failed on {name} ({said}). Set layout to "
                "padded."
            ) from error
        return f"{name} fails with a table of segments ({said})"
    if window is not None and not any(window_passed(layer) for layer in layers):
        return f"{name} does not pass its window of {window} to its attention function"
    difference = max(
        _mean_difference(together[part], alone[part]) for part in _parts(batch, window)
    )
    if difference <= _tolerance(alone.device, inner):
        return None
    return (
        f"{name}'s log-probs differ by {difference:.2g} nats a token between layouts "
        f"{layout.name} and padded"
    )


def _parts(batch: PairBatch, window: int | None) -> list[slice]:
    """Return the scored tokens of each sequence, and those of them past the window."""
    parts = []
    sides = zip(pairwise(batch["seqlen_bounds"]), pairwise(batch["scored_bounds"]), strict=True)
    for (start, end), (first, last) in sides:
        parts.append(slice(first, last))
        past = 0 if window is None else end - start - window
        if past > 0:
            parts.append(slice(max(first, last - past), last))
    return parts


def _mean_difference(one: Tensor, other: Tensor) -> float:
    """Return the mean |difference|, the largest over ranks; infinite if it is not finite."""
    found = (one.double() - other.double()).abs().mean().nan_to_num(torch.inf).view(1)
    dist.all_reduce(found, reduce_operation="MAX")
    return float(found)


def _tolerance(device: torch.device, model: PreTrainedModel) -> float:
    low = torch.is_autocast_enabled(device.type) or any(
        p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()
    )
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        low = True
    return _TOLERANCE_LOW_PRECISION if low else _TOLERANCE
