"""Checks of the trained parameters: their dtype, the optimizer, and exports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from composer.core import State
from torch import nn

from spin_composer.errors import InputError
from spin_composer.fsdp import plain_name
from spin_composer.model.trained import trainable_names

_LOW_PRECISION = (torch.bfloat16, torch.float16)
_SHOWN_NAMES = 3


def check_trainable(
    state: State, model: nn.Module, allow_low_precision: bool, exports: bool = False
) -> None:
    """Check that there are trained parameters, of sufficient precision, and in the optimizer.

    Args:
        state: Has the optimizers.
        model: The SpinLM.
        allow_low_precision: Allow trained weights in bf16 or fp16.
        exports: The run exports Hugging Face folders; of a PEFT model only the adapters.

    Raises:
        InputError: Names the parameters and the remedy.
    """
    trained = [(plain_name(n), p) for n, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise InputError(
            "the model has no trainable parameter: all are frozen. Set requires_grad_(True) on "
            "those to train, or give peft_config."
        )
    low = [name for name, p in trained if p.dtype in _LOW_PRECISION]
    if low and not allow_low_precision:
        dtype = str(dict(trained)[low[0]].dtype).removeprefix("torch.")
        raise InputError(
            f"{len(low)} of {len(trained)} trainable parameters are {dtype} ({first_names(low)}): "
            "an update smaller than half a unit in their last place, as most are at SPIN's "
            "learning rates, leaves them unchanged. Load the model with torch_dtype=torch.float32 "
            "(in a YAML, take torch_dtype out of model.config_overrides), which precision: "
            "amp_bf16 still computes in bf16; or set "
            "algorithms.spin.allow_low_precision_weights=true for an optimizer that keeps fp32 "
            "copies or rounds stochastically."
        )
    held = {id(p) for o in state.optimizers for group in o.param_groups for p in group["params"]}
    left_out = [name for name, p in trained if id(p) not in held]
    if left_out:
        raise InputError(
            f"the optimizer does not hold {len(left_out)} of {len(trained)} trainable parameters "
            f"({first_names(left_out)}), which would stay as they are. Make it from "
            "model.parameters() after adapters were added, or freeze them: requires_grad_(False)."
        )
    beside = _unexported_parameters(model.get_submodule("model")) if exports else []
    if beside:
        raise InputError(
            f"{len(beside)} parameters are trained besides the adapters ({first_names(beside)}), "
            "and the Hugging Face folders that the run exports hold the adapters alone. Name their "
            "modules in the LoraConfig's modules_to_save, or take the callback that exports out."
        )


def _unexported_parameters(model: nn.Module) -> list[str]:
    """Return the trained parameters of a PEFT model that its adapter format cannot hold."""
    configs: Mapping[str, object] | None = getattr(model, "peft_config", None)
    if not configs:
        return []
    from peft.utils.other import AuxiliaryTrainingWrapper  # installed, as the model is PEFT's

    wrapped = tuple(
        f"{plain_name(f'{path}.')}"
        for path, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
    )
    biases = any(getattr(c, "bias", "none") != "none" for c in configs.values())
    return sorted(
        name
        for name in trainable_names(model)
        if "lora_" not in name and not name.startswith(wrapped) and not (biases and "bias" in name)
    )


def first_names(names: Iterable[str]) -> str:
    """Return the first few parameter names for a message, without the ComposerModel's prefix."""
    plain = [name.removeprefix("model.") for name in names]
    return ", ".join(plain[:_SHOWN_NAMES]) + (", ..." if len(plain) > _SHOWN_NAMES else "")
