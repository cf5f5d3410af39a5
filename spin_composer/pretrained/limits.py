"""A model's limits on sequences and token ids, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spin_composer.distributed import from_rank_zero
from spin_composer.errors import InputError
from spin_composer.settings.section import Config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_POSITIONS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx",
)  # fmt: skip
"""Names of the maximum number of positions in configs; ``max_seq_len`` is MPT's."""
_ROTARY = ("rope_theta", "rope_parameters", "rotary_pct", "rotary_dim", "alibi")
"""Settings of models whose positions are computed; the second is transformers 5's."""
_RELATIVE = ("bloom", "mamba", "mamba2", "rwkv", "t5")
"""Model types without a maximum position."""
_ALREADY_SCALED = ("llama3", "longrope", "su", "mrope", "default")
"""Rope scalings whose result is already included in ``max_position_embeddings``."""
_NOT_CONFIG_KEYS = (
    "name", "tokenizer", "use_train_metrics", "additional_train_metrics",
    "additional_eval_metrics", "loss_fn", "master_weights_dtype",
)  # fmt: skip


@dataclass(frozen=True)
class ModelLimits:
    """Limits on sequences and token ids according to a model's config."""

    positions: int | None = None
    """Most tokens of a sequence; None if there is no limit."""
    learned_positions: bool = False
    """Positions are embeddings: a longer sequence is an IndexError, not just a worse result."""
    vocabulary_size: int | None = None
    """Rows of the embedding; None if the config does not say."""
    pad_token_id: int | None = None
    """The padding id of the config."""
    rescaled_past: int | None = None
    """Beyond so many tokens of its longest row a batch is computed with other frequencies, for its
    short rows too; None if not."""


def model_limits(config: PretrainedConfig) -> ModelLimits:
    """Return what a Hugging Face config, or llm-foundry's MPTConfig, says."""
    config = getattr(config, "text_config", None) or config
    vocabulary, pad = (getattr(config, name, None) for name in ("vocab_size", "pad_token_id"))
    positions = _positions(config)
    rotary = any(getattr(config, name, None) for name in _ROTARY)
    return ModelLimits(
        positions=positions,
        learned_positions=positions is not None
        and not rotary,  # MPT rejects longer sequences in any case
        rescaled_past=_rescaled_past(config, positions),
        vocabulary_size=vocabulary if isinstance(vocabulary, int) else None,
        pad_token_id=pad if isinstance(pad, int) else None,
    )


def _positions(config: PretrainedConfig) -> int | None:
    if getattr(config, "model_type", "") in _RELATIVE or getattr(config, "alibi", False) is True:
        return None
    found = (getattr(config, name, None) for name in _POSITIONS)
    positions = next((n for n in found if isinstance(n, int) and n > 0), None)
    scaling = _scaling(config)
    if positions is None or scaling is None:
        return positions
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in _ALREADY_SCALED:
        return positions
    before = scaling.get("original_max_position_embeddings") or positions
    return max(positions, int(before * float(scaling.get("factor") or 1.0)))


def _rescaled_past(config: PretrainedConfig, positions: int | None) -> int | None:
    """Return from which length of a row on a whole batch has other frequencies, None if never."""
    scaling = _scaling(config)
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "dynamic":
        return getattr(config, "max_position_embeddings", None)
    if kind not in ("longrope", "su"):
        return None
    before = scaling.get("original_max_position_embeddings")
    return before or getattr(config, "original_max_position_embeddings", None) or positions


def _scaling(config: PretrainedConfig) -> Mapping[str, Any] | None:
    """Return the scaling of a config's rotary embedding, None if it has none.

    If layers of different types have different ones (Gemma 3 in transformers 5), that of full
    attention.
    """
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if isinstance(scaling, Mapping):
        scaling = scaling.get("full_attention", scaling)
    return scaling if isinstance(scaling, Mapping) else None


def read_limits(model: Config) -> ModelLimits:
    """Read the config of a YAML's ``model`` section, without weights; a collective.

    Raises:
        InputError: If it cannot be read.
    """
    return from_rank_zero(lambda: model_limits(build_config(model)))


def build_config(model: Config) -> PretrainedConfig:
    """Return the config that the model of a YAML's ``model`` section will have.

    Raises:
        InputError: If it cannot be read.
    """
    given = {key: value for key, value in model.items() if key not in _NOT_CONFIG_KEYS}
    name = given.get("pretrained_model_name_or_path")
    try:
        if name is None:
            from spin_composer.foundry.mpt_config import mpt_config

            return mpt_config(**given)
        from spin_composer.pretrained.config import read_config

        return read_config(
            name,
            trust_remote_code=bool(given.get("trust_remote_code", False)),
            token=given.get("use_auth_token", False),
            attn_implementation=given.get("attn_implementation"),
            overrides=given.get("config_overrides"),
        )
    except InputError:
        raise
    except Exception as error:
        what = "model" if name is None else f"model.pretrained_model_name_or_path={name}"
        raise InputError(
            f"{what}: its config cannot be read ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}). Give a model's folder or a Hub name, and "
            "settings that its config has."
        ) from error
