"""Models whose weights are quantised: not trained here, and refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spin_composer.errors import InputError, shown

_FLAGS = ("load_in_8bit", "load_in_4bit", "quantization_config")
_LOW = {"bfloat16", "float16", "half", "bf16", "fp16", "torch.bfloat16", "torch.float16"}


def check_model_settings(model: Mapping[str, Any], allow_low_precision: bool = False) -> None:
    """Refuse a YAML's ``model`` that quantises, or that trains weights of low precision.

    Raises:
        InputError: Names the setting.
    """
    overrides = model.get("config_overrides") or {}
    sections = [("model", model), ("model.config_overrides", overrides)]
    for where, section in sections:
        if not isinstance(section, Mapping):
            continue
        for name in _FLAGS:
            if section.get(name):
                value = "true" if section[name] is True else shown(section[name])
                raise InputError(
                    f"{where}.{name}={value} is for inference only: quantised models (QLoRA "
                    "too) are not supported. Remove it; LoRA over an unquantised base trains "
                    "little too."
                )
        for name in ("torch_dtype", "dtype"):
            if str(section.get(name)) in _LOW and not allow_low_precision:
                raise InputError(
                    f"{where}.{name}={section[name]}: trainable weights of that precision do not "
                    "move at SPIN's learning rates. Remove it (precision: amp_bf16 computes in "
                    "bf16 all the same), or set spin.allow_low_precision_weights=true."
                )


def check_config(config: Any, name: object) -> None:
    """Refuse a model by its config, a Hugging Face config or the dict of its JSON.

    Args:
        config: The model's.
        name: What the message calls the model.

    Raises:
        InputError: Names the model and the method.
    """
    get = config.get if isinstance(config, Mapping) else lambda key: getattr(config, key, None)
    nested = get("text_config")
    found = get("quantization_config") or (nested and _value(nested, "quantization_config"))
    if not found:
        return
    method = _value(found, "quant_method") or type(found).__name__
    raise InputError(
        f"the model {name} is quantised ({getattr(method, 'value', method)}): quantised bases, "
        "QLoRA's too, are not supported. Use the model that it was made of."
    )


def _value(of: Any, key: str) -> Any:
    return of.get(key) if isinstance(of, Mapping) else getattr(of, key, None)


def check_loaded(model: Any) -> None:
    """Refuse a model in memory that is quantised.

    Raises:
        InputError: Names the model and the method.
    """
    name = type(model).__name__
    check_config(model.config, name)
    flags = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
    quantised = any(getattr(model, flag, False) is True for flag in flags)
    whole = {p.dtype.is_floating_point and p.dtype.itemsize > 1 for p in model.parameters()}
    if quantised or False in whole:
        raise InputError(
            f"the model {name} is quantised: quantised bases, QLoRA's too, are not supported. "
            "Use the model that it was made of."
        )
