"""The optimizer and the adapters of a recipe."""

from __future__ import annotations

from typing import Any

from spin_composer.importers.foreign import ForeignConfig
from spin_composer.importers.fresh import FreshYaml
from spin_composer.settings.fields import is_int, is_number

_ADAM = (
    "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "paged_adamw_32bit",
    "adamw_bnb_8bit", "paged_adamw_8bit",
)  # fmt: skip
_DECAYS = {
    "linear": "linear", "cosine": "cosine", "cosine_with_restarts": "cosine",
    "constant": "constant", "constant_with_warmup": "constant",
}  # fmt: skip


def put_optimizer(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put optimizer and schedule.

    Raises:
        InputError: Their kinds have no counterpart.
    """
    name, rate = theirs.take("optim", "adamw_torch"), theirs.take("learning_rate")
    if not is_number(rate):
        raise theirs.refuse("learning_rate", "give the peak learning rate")
    decay = theirs.take_number("weight_decay", 0.0)
    if name == "rmsprop":
        draft.put("optimizer.name", "rmsprop", "optim", "torch.optim.RMSprop")
        draft.put("optimizer.lr", float(rate), "learning_rate")
        draft.put("optimizer.weight_decay", decay, "weight_decay")
    elif name in _ADAM:
        why = "with 8-bit states it takes less memory than here" if "8bit" in name else ""
        draft.put("optimizer.name", "decoupled_adamw", "optim", why)
        draft.put("optimizer.lr", float(rate), "learning_rate")
        betas = [theirs.take("adam_beta1", 0.9), theirs.take("adam_beta2", 0.999)]
        draft.put("optimizer.betas", betas, "adam_beta1, adam_beta2")
        draft.put("optimizer.eps", theirs.take_number("adam_epsilon", 1e-8), "adam_epsilon")
        draft.put(
            "optimizer.weight_decay", decay * float(rate), "weight_decay",
            "times the learning rate: here it is decoupled",
        )  # fmt: skip
    else:
        raise theirs.refuse("optim", f"use rmsprop or one of {', '.join(_ADAM)}")
    _put_schedule(theirs, draft)


def _put_schedule(theirs: ForeignConfig, draft: FreshYaml) -> None:
    kind = theirs.take("lr_scheduler_type", "linear")
    if kind not in _DECAYS:
        raise theirs.refuse("lr_scheduler_type", f"use one of {', '.join(_DECAYS)}")
    draft.yaml.set("scheduler.name", "spin")
    steps, ratio = theirs.take("warmup_steps"), theirs.take("warmup_ratio", 0)
    in_steps = is_int(steps) and steps > 0
    warmup = f"{steps}ba" if in_steps else f"{ratio}dur"
    key = "warmup_steps" if in_steps else "warmup_ratio"
    draft.put("scheduler.t_warmup", warmup, key, "of each iteration")
    draft.put("scheduler.decay", _DECAYS[kind], "lr_scheduler_type", "within each iteration")


def put_adapters(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put LoRA, if the recipe trains it."""
    names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save")
    if not theirs.take("use_peft"):
        return
    rank, alpha, _, targets, saved = (theirs.take(name) for name in names)
    adapters: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 16 if rank is None else rank,
        "lora_alpha": 32 if alpha is None else alpha,
        "lora_dropout": 0.0,
        "target_modules": targets or "all-linear",
    }
    if saved:
        adapters["modules_to_save"] = saved
    draft.put("model.peft_config", adapters, ", ".join(["use_peft", *names]), "dropout is off")
