"""The optimizer and the adapters of a recipe."""

from __future__ import annotations

from typing import Any

from spin_composer.importers.foreign import ForeignConfig, duration
from spin_composer.importers.fresh import FreshYaml
from spin_composer.settings.fields import is_number

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
    # rmsprop is the default of uclaml/SPIN and the handbook, which have mixers, and not of TRL.
    default = "adamw_torch" if theirs.values.get("dataset_mixer") is None else "rmsprop"
    name = theirs.take_one_of("optim", ("rmsprop", *_ADAM), default)
    rate = theirs.take("learning_rate")
    if not (is_number(rate) and rate > 0):
        raise theirs.refuse("learning_rate", "give the peak learning rate")
    decay = theirs.take_number("weight_decay", 0.0)
    if name == "rmsprop":
        draft.put("optimizer.name", "rmsprop", "optim", "torch.optim.RMSprop")
        draft.put("optimizer.lr", float(rate), "learning_rate")
        draft.put("optimizer.weight_decay", decay, "weight_decay")
    else:
        why = "with 8-bit states it takes less memory than here" if "8bit" in name else ""
        draft.put("optimizer.name", "decoupled_adamw", "optim", why)
        draft.put("optimizer.lr", float(rate), "learning_rate")
        betas = [theirs.take_number("adam_beta1", 0.9), theirs.take_number("adam_beta2", 0.999)]
        draft.put("optimizer.betas", betas, "adam_beta1, adam_beta2")
        draft.put("optimizer.eps", theirs.take_number("adam_epsilon", 1e-8), "adam_epsilon")
        draft.put(
            "optimizer.weight_decay", decay * float(rate), "weight_decay",
            "times the learning rate: here it is decoupled",
        )  # fmt: skip
    _put_schedule(theirs, draft)


def _put_schedule(theirs: ForeignConfig, draft: FreshYaml) -> None:
    kind = theirs.take_one_of("lr_scheduler_type", _DECAYS, "linear")
    draft.yaml.set("scheduler.name", "spin")
    steps = theirs.take_number("warmup_steps", 0)
    ratio = theirs.take_number("warmup_ratio", 0)
    if kind == "constant":
        for key in ("warmup_steps", "warmup_ratio"):
            theirs.explain(key, "a constant rate has no warm-up, constant_with_warmup has")
        draft.put("scheduler.t_warmup", "0ba", "lr_scheduler_type", "no warm-up")
    elif steps > 0:  # a share of all steps below 1
        warmup = f"{int(steps)}ba" if steps >= 1 else duration(steps)
        draft.put("scheduler.t_warmup", warmup, "warmup_steps", "of each iteration")
        theirs.explain("warmup_ratio", "warmup_steps is used")
    else:
        draft.put("scheduler.t_warmup", duration(ratio), "warmup_ratio", "of each iteration")
        theirs.explain("warmup_steps", "warmup_ratio is used")
    draft.put("scheduler.decay", _DECAYS[kind], "lr_scheduler_type", "within each iteration")


def put_adapters(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put LoRA, if the recipe trains it.

    Raises:
        InputError: It sets what LoRA has no setting for here.
    """
    if not theirs.take("use_peft"):
        return
    names = ["lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save"]
    for key, value in theirs.values.items():
        if key.startswith("lora_") and value is not None and key not in (*names, "lora_task_type"):
            raise theirs.refuse(key, "write it in model.peft_config by hand, and take it out")
    rank, alpha, _, targets, saved = (theirs.take(name) for name in names)
    adapters: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 16 if rank is None else rank,
        "lora_alpha": 32 if alpha is None else alpha,
        "lora_dropout": 0.0,
    }
    why = "dropout is off"
    if targets:
        adapters["target_modules"] = targets
    else:
        why += ", and PEFT chooses the modules by the model's type"
    if saved:
        adapters["modules_to_save"] = saved
    draft.put("model.peft_config", adapters, ", ".join(["use_peft", *names]), why)
