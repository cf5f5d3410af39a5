"""What is trained: that it can move, that the optimizer holds it, and that checkpoints keep it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from composer.core import State
from composer.utils import dist
from peft.utils.other import AuxiliaryTrainingWrapper

from spin_composer.errors import InputError
from spin_composer.fsdp import plain_name
from spin_composer.model.trained import trainable_names

log = logging.getLogger(__name__)

_LOW_PRECISION = (torch.bfloat16, torch.float16)


def check_trainable(
    state: State, model: Any, allow_low_precision: bool, exports: bool = False
) -> None:
    """Check that there is something to train, that it can move, and that the optimizer holds it.

    Args:
        state: For the optimizers.
        model: The SpinLM.
        allow_low_precision: Let weights be trained that are bf16 or fp16 themselves.
        exports: The run writes Hugging Face folders, of a PEFT model its adapters'.

    Raises:
        InputError: Names the parameters and the remedy.
    """
    trained = [(plain_name(n), p) for n, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise InputError(
            "the model has no trainable parameter: all are frozen. Set requires_grad_(True) on "
            "those to train, or give peft_config."
        )
    low = [(name, p.dtype) for name, p in trained if p.dtype in _LOW_PRECISION]
    if low and not allow_low_precision:
        dtype = str(low[0][1]).removeprefix("torch.")
        raise InputError(
            f"{len(low)} of {len(trained)} trainable parameters are {dtype} ({_first(low)}): an "
            "update smaller than half a unit in their last place, as most are at SPIN's learning "
            "rates, leaves them unchanged. Load the model with torch_dtype=torch.float32 (in a "
            "YAML, take torch_dtype out of model.config_overrides), which precision: amp_bf16 "
            "still computes in bf16; or set algorithms.spin.allow_low_precision_weights=true for "
            "an optimizer that keeps fp32 copies or rounds stochastically."
        )
    held = {id(p) for o in state.optimizers for group in o.param_groups for p in group["params"]}
    left_out = [(name, p) for name, p in trained if id(p) not in held]
    if left_out:
        raise InputError(
            f"the optimizer does not hold {len(left_out)} of {len(trained)} trainable parameters "
            f"({_first(left_out)}), which would stay as they are. Make it from "
            "model.parameters() after adapters were added, or freeze them: requires_grad_(False)."
        )

    left_out = [(name, None) for name in _beside_adapters(model.model)] if exports else []
    if left_out:
        raise InputError(
            f"{len(left_out)} parameters are trained beside the adapters ({_first(left_out)}), and "
            "the folders that HuggingFaceCheckpointer exports cannot hold them. Name their modules "
            "in the LoraConfig's modules_to_save, or take that callback out."
        )


def _beside_adapters(model: Any) -> list[str]:
    """Return the trained parameters of a PEFT model that are not part of its adapters' format."""
    if not getattr(model, "peft_config", None):
        return []
    wrapped = tuple(
        f"{plain_name(f'{path}.')}"
        for path, module in model.named_modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
    )
    biases = any(getattr(c, "bias", "none") != "none" for c in model.peft_config.values())
    return sorted(
        name
        for name in trainable_names(model)
        if "lora_" not in name and not name.startswith(wrapped) and not (biases and "bias" in name)
    )


def _first(named: Iterable[tuple[str, Any]], most: int = 3) -> str:
    names = [name.removeprefix("model.") for name, _ in named]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def watch_load(state: State) -> set[str]:
    """Have the names of trained parameters noted that a checkpoint, loaded next, lacks.

    Returns:
        Filled while it is loaded. Composer itself resumes from a checkpoint that lacks weights
        without a word.
    """
    missing: set[str] = set()
    load = state.load_model_state

    def noting(state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        held = state_dict["model"]
        if held is not None:
            missing.update(trainable_names(state.model) - set(held))
        load(state_dict, *args, **kwargs)

    state.load_model_state = noting
    return missing


def require_restored(state: State, missing: set[str] | None) -> None:
    """Refuse to go on from a checkpoint that lacks weights which are trained; a collective.

    Before the first batch they are the base model's in any case: a warning then.

    Raises:
        InputError: Names the weights.
    """
    lacking = sorted({name for names in dist.all_gather_object(missing) for name in names or ()})
    if not lacking:
        return
    which = f"the checkpoint lacks {len(lacking)} of the trained weights"
    which += f" ({_first((name, None) for name in lacking)})"
    if int(state.timestamp.batch) == 0:
        if dist.get_global_rank() == 0:
            log.warning(f"{which}: they are the base model's.")
        return
    raise InputError(
        f"{which}: it was saved by a run that trained others, or by a version that left out what "
        "is trained beside adapters, and the run cannot go on as it was. Train the same weights, "
        "or start anew with another run_name and other folders."
    )
