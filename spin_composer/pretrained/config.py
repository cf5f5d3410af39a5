"""The config that a model is loaded with: from a folder or the Hub, with overrides.

transformers 4.51 and 5 name an argument differently; this module defines the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PretrainedConfig

from spin_composer.errors import InputError, format_value
from spin_composer.pretrained.quantized import check_config
from spin_composer.settings.fields import suggest_key

_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
DTYPE = "dtype" if _VERSION >= (4, 56) else "torch_dtype"
"""transformers' name of the dtype of weights, as an argument and as a config's attribute."""
_DTYPE_NAMES = ("dtype", "torch_dtype")
DEFAULT_ATTENTION = "eager"


def read_config(
    name: str,
    *,
    trust_remote_code: bool = False,
    token: bool | str | None = False,
    attn_implementation: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> PretrainedConfig:
    """Read the config of a pretrained causal LM; of a multimodal model, its language model's.

    The dtype of the weights is fp32 unless overridden, whatever the dtype of the file.

    Args:
        name: A folder or a Hub name.
        trust_remote_code: Run Python code that comes with the model.
        token: Hub token; true uses the one of ``hf auth login``, false sends none.
        attn_implementation: ``eager`` if None.
        overrides: Values by setting; a mapping changes only the given entries of a nested setting.

    Raises:
        InputError: The model is quantized, or an override's setting does not exist.
        OSError: transformers cannot find the config.
    """
    attention = attn_implementation or DEFAULT_ATTENTION
    whole = AutoConfig.from_pretrained(
        name,
        trust_remote_code=trust_remote_code,
        token=token,
        attn_implementation=attention,
        use_cache=False,  # generation makes its own caches
        **{DTYPE: torch.float32},
    )
    check_config(whole, name)
    config = getattr(whole, "text_config", None) or whole
    if config is not whole:
        config.use_cache = False
        config._attn_implementation = attention
        setattr(config, DTYPE, torch.float32)
    _override(config, overrides or {})
    check_config(config, name)
    return config


def weights_dtype(config: PretrainedConfig) -> torch.dtype:
    """Return the dtype of weights in a config of :func:`read_config`."""
    dtype = getattr(config, DTYPE)
    return getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype


def _override(config: PretrainedConfig, overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        name = DTYPE if name in _DTYPE_NAMES else name
        where = f"model.config_overrides.{name}"
        before = _known(config, name, value, where)
        if isinstance(before, PretrainedConfig):
            for key, nested in _mapping(value, where).items():
                _known(before, key, nested, f"{where}.{key}")
                setattr(before, key, nested)
        elif isinstance(before, Mapping):
            for key, nested in _mapping(value, where).items():
                # transformers 5 also has an entry for a rotary embedding without scaling.
                if key not in before and before.get("rope_type") != "default":
                    raise InputError(
                        f"{where}.{key}={format_value(nested)}: the config has no such entry. "
                        f"{suggest_key(key, sorted(map(str, before)))}"
                    )
            setattr(config, name, {**before, **value})
        else:
            setattr(config, name, dict(value) if isinstance(value, Mapping) else value)


def _known(config: PretrainedConfig, name: str, value: object, where: str) -> Any:
    """Return a setting's value; raise with the closest name if it does not exist."""
    if not hasattr(config, name):
        names = sorted(key for key in config.to_dict() if not key.startswith("_"))
        raise InputError(
            f"{where}={format_value(value)}: a {type(config).__name__} has no such setting. "
            f"{suggest_key(name, names)}"
        )
    return getattr(config, name)


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(
            f"{where} must be a mapping, as the config's is, got {format_value(value)}."
        )
    return value


def read_generation_config(name: str, token: bool | str | None = False) -> GenerationConfig | None:
    """Return a checkpoint's generation config, which play does not use and exports keep.

    Args:
        name: A folder or a Hub name.
        token: As of :func:`read_config`.

    Returns:
        The config; None if the checkpoint has none.

    Raises:
        InputError: transformers refuses what it says; it would load no weights beside it either.
    """
    try:
        return GenerationConfig.from_pretrained(name, token=token)
    except OSError:
        return None
    except ValueError as error:
        raise InputError(
            f"model.pretrained_model_name_or_path={name}: transformers {transformers.__version__} "
            f"refuses its generation_config.json ({' '.join(str(error).split())[:300]}). Correct "
            "or remove that file."
        ) from error
