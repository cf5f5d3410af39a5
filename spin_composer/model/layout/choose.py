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

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from spin_composer.data.pairs import Ids, PairBatch, collate_pairs
from spin_composer.errors import InputError
from spin_composer.fsdp import is_sharded
from spin_composer.model.layout.attention import install_segment_attention, latest_call
from spin_composer.model.layout.base import Layout
from spin_composer.model.layout.mechanism import use_kernel
from spin_composer.model.layout.packed import PACKED, SharedLayout
from spin_composer.model.layout.padded import PADDED
from spin_composer.model.layout.probe import (
    mean_difference,
    parts_of,
    probe_pairs,
    tolerance,
    window_of,
    without_tf32,
)
from spin_composer.model.layout.varlen import flash_kernel
from spin_composer.model.unwrap import inner_model, plain_class
from spin_composer.settings.spin import LayoutName

log = logging.getLogger(__name__)

LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (SharedLayout(), PACKED, PADDED)}

Score = Callable[[PairBatch, Layout], Tensor]
"""Returns token log-probs [N] of a pair batch in a layout."""

_OLD_FAMILIES = frozenset(
    {
        "cohere", "deepseek_v3", "glm4", "granite", "llama", "mistral", "phi3", "qwen2", "qwen3",
        "qwen3_moe",
    }
)  # fmt: skip
"""Model types that pass on a mask of 4 dimensions unchanged before transformers 4.53, in which each
model builds its own; tests/model/layout/test_packed.py tries them."""
_READ_THE_ROW = ("attn_temperature_tuning", "use_logn_attn")
"""Settings of models whose attention depends on a token's position in its row."""


def choose_layout(
    name: LayoutName,
    model: nn.Module,
    tokens: Ids,
    longest: int,
    score: Score,
    before: LayoutName | None = None,
) -> Layout:
    """Return the layout of a run, the same on every rank; a collective.

    Args:
        name: The setting ``layout``.
        model: A model with a scoring head, inside FSDP or not.
        tokens: Ids of real rows, for the trial.
        longest: Tokens of the longest sequence that the run can contain.
        score: Returns the token log-probs [N] of a batch in a layout.
        before: The layout of an iteration that has begun, which is kept if ``name`` is ``auto``.

    Raises:
        InputError: The model does not support the layout ``name`` or ``before``, or the trial
            failed on a sharded model, which cannot go on after that.
    """
    if name == "padded" or (name == "auto" and before == "padded"):
        return PADDED
    kept = before if name == "auto" else None
    wanted = LAYOUTS[kept or ("shared" if name == "auto" else name)]
    reason = unsupported_reason(inner_model(model), longest)
    if reason is None:
        trial = _Trial(wanted, model, tokens, longest, score)
        reason = trial.failure()
        if reason is None:
            log.info("Pairs are laid out without padding: layout %s", wanted.name)
            trial.use_fastest_attention()
            return wanted
    if kept is not None:
        raise InputError(
            f"algorithms.spin.layout: this iteration began with layout {kept}, which cannot be "
            f"used any more: {reason}. Resume with the versions of torch and transformers that it "
            "began with."
        )
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


class _Trial:
    """The trial of a layout on two pairs."""

    def __init__(
        self, layout: Layout, model: nn.Module, tokens: Ids, longest: int, score: Score
    ) -> None:
        self.layout, self.model, self.score = layout, model, score
        self.inner = inner_model(model)
        self.name = plain_class(self.inner).__name__
        self.layers = install_segment_attention(self.inner)
        self.window = window_of(self.inner, longest)
        text = self.inner.config.get_text_config()
        self.pairs = probe_pairs(text, self.window, tokens, longest)
        self.batch = collate_pairs(self.pairs)

    def failure(self) -> str | None:
        """Score the pairs in the layout and padded; return why it cannot be used, or None."""
        with without_tf32():
            alone = torch.cat([self.score(collate_pairs([pair]), PADDED) for pair in self.pairs])
            try:
                together = self.score(self.batch, self.layout)
            except (torch.OutOfMemoryError, InputError):
                raise
            except Exception as error:
                return self._said_of(error)
        if self.window is not None and not any(
            call is not None and call.window for call in map(latest_call, self.layers)
        ):
            return (
                f"{self.name} does not pass its window of {self.window} to its attention function"
            )
        return self._difference(together, alone, f"between layouts {self.layout.name} and padded")

    def use_fastest_attention(self) -> None:
        """On a GPU, let the model use FlashAttention for packed rows if it is exact."""
        device = next(self.inner.parameters()).device
        if device.type != "cuda":
            return
        kernel = flash_kernel()
        if kernel is None:
            log.info("Packed rows use SDPA: this torch has no varlen_attn (2.10 has)")
            return
        by_branch = self.score(self.batch, self.layout)

        def differs() -> str | None:
            try:
                found = self.score(self.batch, self.layout)
            except (torch.OutOfMemoryError, InputError):
                raise
            except Exception as error:
                return self._said_of(error)
            return self._difference(found, by_branch, "from SDPA's")

        use_kernel(kernel, self.layers, device, differs)

    def _said_of(self, error: Exception) -> str:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if is_sharded(self.model):
            raise InputError(
                f"algorithms.spin.layout: {self.layout.name} failed on {self.name} ({said}). Set "
                "layout to padded."
            ) from error
        return f"{self.name} fails with a table of segments ({said})"

    def _difference(self, one: Tensor, other: Tensor, what: str) -> str | None:
        """Return by how much log-probs differ if rounding does not explain it, else None."""
        parts = parts_of(self.batch, self.window)
        difference = max(mean_difference(one[part], other[part]) for part in parts)
        if difference <= tolerance(one.device, self.inner):
            return None
        return f"{self.name}'s log-probs differ by {difference:.2g} nats a token {what}"
