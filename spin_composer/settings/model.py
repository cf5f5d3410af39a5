"""A YAML's ``model`` block: settings under which SPIN cannot train."""

from __future__ import annotations

from collections.abc import Mapping

from spin_composer.errors import InputError, format_value
from spin_composer.settings.section import Config

_FLAGS = ("load_in_8bit", "load_in_4bit", "quantization_config")


_LOW = {"bfloat16", "float16", "half", "bf16", "fp16", "torch.bfloat16", "torch.float16"}


META_LOADS_NOTHING = (
    "model.init_device=meta loads no weights, and model.pretrained is true. Set "
    "model.init_device=mixed"
)
NO_FLASH_ATTENTION = (
    "and flash-attn is not installed. Install it, or set model.attn_implementation=sdpa."
)
QUANTIZED_BASES = "quantized bases, QLoRA's too, are not supported"


def lora_on_output_layer(layer: str) -> str:
    """Return the line that refuses LoRA on the output layer, by its name or its model's."""
    return (
        f"model.peft_config.target_modules names {layer}, the output layer: LoRA there is not "
        "supported. Take it out (modules_to_save may have it)."
    )


def mpt_runs_on(transformers_version: str) -> bool:
    """Return whether llm-foundry's MPT runs on a version of transformers."""
    return int(transformers_version.partition(".")[0]) < 5


def mpt_refusal(what: str, transformers_version: str) -> str:
    """Return the line that refuses llm-foundry's MPT; ``what`` names the setting or the model."""
    return (
        f"{what} does not run on transformers {transformers_version}: llm-foundry's MPT needs an "
        "older version. Install requirements-foundry.lock, or train another model (hf_spin_lm)."
    )


def check_model_settings(model: Config, allow_low_precision: bool = False) -> None:
    """Reject a YAML's ``model`` that quantizes, or that trains weights of low precision.

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
                value = "true" if section[name] is True else format_value(section[name])
                raise InputError(
                    f"{where}.{name}={value} is for inference only: {QUANTIZED_BASES}. "
                    "Remove it; LoRA over an unquantized base trains "
                    "little too."
                )
        for name in ("torch_dtype", "dtype"):
            if str(section.get(name)) in _LOW and not allow_low_precision:
                raise InputError(
                    f"{where}.{name}={section[name]}: trainable weights of that precision do not "
                    "move at SPIN's learning rates. Remove it (precision: amp_bf16 computes in "
                    "bf16 all the same), or set algorithms.spin.allow_low_precision_weights=true."
                )
