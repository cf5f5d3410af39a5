"""Rejection of models with quantized weights, which cannot be trained here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spin_composer.errors import InputError
from spin_composer.settings.model import QUANTIZED_BASES

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel


def check_config(config: PretrainedConfig | Mapping[str, object], name: object) -> None:
    """Reject a quantized model by its config, as an object or as a dict.

    Args:
        config: The model's config.
        name: The model's name for the message.

    Raises:
        InputError: Names the model and the method.
    """
    get = config.get if isinstance(config, Mapping) else lambda key: getattr(config, key, None)
    nested = get("text_config")
    found = get("quantization_config") or (nested and _value(nested, "quantization_config"))
    if not found:
        return
    method = _value(found, "quant_method") or type(found).__name__
    raise _refused(name, f" ({getattr(method, 'value', method)})")


def _refused(name: object, method: str = "") -> InputError:
    return InputError(
        f"the model {name} is quantized{method}: {QUANTIZED_BASES}. Use the model that it was made "
        "of."
    )


def _value(of: object, key: str) -> object:
    return of.get(key) if isinstance(of, Mapping) else getattr(of, key, None)


def check_loaded(model: PreTrainedModel | PeftModel) -> None:
    """Reject a model in memory that is quantized.

    Raises:
        InputError: Names the model and the method.
    """
    name = type(model).__name__
    config: Any = model.config  # PeftModel passes it on from the base model
    check_config(config, name)
    flags = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
    quantized = any(getattr(model, flag, False) is True for flag in flags)
    whole = {p.dtype.is_floating_point and p.dtype.itemsize > 1 for p in model.parameters()}
    if quantized or False in whole:
        raise _refused(name)
