"""The game, the optimizer and the adapters of a NeMo-Aligner config."""

from __future__ import annotations

from typing import Any

from spin_composer.importers.foreign import ForeignConfig
from spin_composer.importers.fresh import FreshYaml
from spin_composer.settings.fields import is_int, is_number

_GAME = "algorithms.spin"
_GENERATION = f"{_GAME}.generation"
_ENDS = ("<|endoftext|>",)
"""NeMo's name of EOS, at which every response ends."""
_ADAM = ("distributed_fused_adam", "fused_adam", "adamw", "adam", "mcore_distributed_optim")
_DECAYS = {
    "CosineAnnealing": "cosine", "WarmupAnnealing": "linear",
    "PolynomialDecayAnnealing": "linear", "LinearAnnealing": "linear",
    "WarmupPolicy": "constant", "WarmupHoldPolicy": "constant",
}  # fmt: skip
_LORA_TARGETS = {
    "attention_qkv": ["q_proj", "k_proj", "v_proj"],
    "attention_dense": ["o_proj"],
    "mlp_fc1": ["gate_proj", "up_proj"],
    "mlp_fc2": ["down_proj"],
}
_LORA_TARGETS["attention"] = [*_LORA_TARGETS["attention_qkv"], *_LORA_TARGETS["attention_dense"]]
_LORA_TARGETS["mlp"] = [*_LORA_TARGETS["mlp_fc1"], *_LORA_TARGETS["mlp_fc2"]]
_LORA_TARGETS["all"] = [*_LORA_TARGETS["attention"], *_LORA_TARGETS["mlp"]]
_OFF = (None, "none", "None")


def put_game(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put the duration and ``algorithms.spin``.

    Raises:
        InputError: A value has no counterpart.
    """
    key = "trainer.spin.max_iterations"
    if key not in theirs.values and "model.spin.num_rounds" in theirs.values:
        key = "model.spin.num_rounds"  # its name in the first version
    draft.put("max_duration", f"{theirs.take(key, 1)}iter", key)
    key = "trainer.spin.max_epochs"
    draft.put(f"{_GAME}.iteration_length", f"{theirs.take(key, 1)}ep", key, "epochs per iteration")
    key = "model.spin.ref_policy_kl_penalty"
    penalty = theirs.take(key)
    if penalty is None:
        raise theirs.refuse(key, "give a number, or one per iteration")
    draft.put(f"{_GAME}.beta", penalty, key, "one number, or one per iteration")
    draft.put(f"{_GAME}.replay", 0, "", "as NeMo-Aligner, which mixes no earlier pairs in")
    draft.put(f"{_GAME}.reset_optimizer", False, "", "as NeMo-Aligner, whose optimizer goes on")
    _put_generation(theirs, draft)
    _put_rows(theirs, draft)
    key = "trainer.spin.gradient_clip_val"
    clip = theirs.take(key)
    if is_number(clip) and clip > 0:
        clipping = {"clipping_type": "norm", "clipping_threshold": float(clip)}
        draft.put("algorithms.gradient_clipping", clipping, key)


def _put_rows(theirs: ForeignConfig, draft: FreshYaml) -> None:
    key = "trainer.spin.limit_train_batches"
    limit = theirs.take(key)
    batch = theirs.take("model.global_batch_size")
    if is_int(limit) and is_int(batch) and limit > 1:
        draft.put(f"{_GAME}.samples_per_iteration", limit * batch, key, "as prompts")
    elif limit not in (None, 1, 1.0, -1):
        raise theirs.refuse(key, "give a number of batches, or 1.0 for all")


def _put_generation(theirs: ForeignConfig, draft: FreshYaml) -> None:
    key = "model.spin.length_params.max_length"
    longest = theirs.take(key)
    if longest is None:
        raise theirs.refuse(key, "give the most tokens of a generated response")
    draft.put(f"{_GENERATION}.max_new_tokens", longest, key)
    key = "model.spin.length_params.min_length"
    least = theirs.take(key)
    if least is not None:
        why = "0 samples from the policy itself" if least else ""
        draft.put(f"{_GENERATION}.min_new_tokens", least, key, why)
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        key = f"model.spin.sampling_params.{name}"
        if (value := theirs.take(key)) is not None:
            draft.put(f"{_GENERATION}.{name}", value, key)
    key = "model.spin.sampling_params.end_strings"
    given = theirs.take_texts(key)
    strings = [text for text in given if text not in _ENDS]
    if given:
        why = "besides the stop token, which needs no mention"
        draft.put(f"{_GENERATION}.stop_strings", strings, key, why)
    key = "model.spin.rollout_micro_batch_size"
    if key not in theirs.values:
        key = "model.spin.generation_batch_size"  # its name in the first versions
    if (rows := theirs.take(key)) is not None:
        draft.put(f"{_GENERATION}.batch_size", rows, key, "more is faster: as many as fit")


def put_optimizer(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put optimizer and schedule.

    Raises:
        InputError: Their kinds have no counterpart.
    """
    key = "model.optim.name"
    name = theirs.take(key, _ADAM[0])
    if name not in _ADAM:
        raise theirs.refuse(key, f"use one of {', '.join(_ADAM)}, or write the optimizer by hand")
    key = "model.optim.lr"
    rate = theirs.take(key)
    if not is_number(rate):
        raise theirs.refuse(key, "give the peak learning rate")
    draft.put("optimizer.name", "decoupled_adamw", "model.optim.name", f"was {name}")
    draft.put("optimizer.lr", float(rate), key)
    if betas := theirs.take("model.optim.betas"):
        draft.put("optimizer.betas", betas, "model.optim.betas")
    draft.put("optimizer.eps", theirs.take_number("model.optim.eps", 1e-8), "model.optim.eps")
    key = "model.optim.weight_decay"
    decay = _rounded(theirs.take_number(key, 0.0) * float(rate))
    draft.put("optimizer.weight_decay", decay, key, "times the learning rate: here it is decoupled")
    _put_schedule(theirs, draft, float(rate))


def _put_schedule(theirs: ForeignConfig, draft: FreshYaml, rate: float) -> None:
    where = "model.optim.sched"
    name = theirs.take(f"{where}.name", "WarmupPolicy")
    if name not in _DECAYS:
        raise theirs.refuse(f"{where}.name", f"use one of {', '.join(_DECAYS)}")
    draft.yaml.set("scheduler.name", "spin")
    steps, ratio = theirs.take(f"{where}.warmup_steps"), theirs.take(f"{where}.warmup_ratio")
    warmup = f"{steps}ba" if steps is not None else f"{ratio or 0}dur"
    key = f"{where}.warmup_steps" if steps is not None else f"{where}.warmup_ratio"
    draft.put("scheduler.t_warmup", warmup, key, "in each iteration")
    draft.put("scheduler.decay", _DECAYS[name], f"{where}.name", f"was {name}, over the whole run")
    least = theirs.take_number(f"{where}.min_lr", 0.0)
    share = _rounded(min(1.0, least / rate))
    if _DECAYS[name] != "constant":
        draft.put("scheduler.alpha_f", share, f"{where}.min_lr", "as a share of the peak")


def _rounded(value: float) -> float:
    """Return a product as people write it: 9e-7, not 9.000000000000001e-7."""
    return float(f"{value:.12g}")


def put_adapters(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put LoRA, if the config trains it.

    Raises:
        InputError: It trains adapters of another kind.
    """
    key = "model.peft.peft_scheme"
    scheme = theirs.take(key)
    if scheme in _OFF:
        return
    if scheme != "lora":
        raise theirs.refuse(key, "only lora and none are trained here")
    where = "model.peft.lora_tuning"
    rank = theirs.take(f"{where}.adapter_dim", 32)
    adapters: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": theirs.take(f"{where}.alpha", rank),
        "lora_dropout": 0.0,
        "target_modules": _targets(theirs, f"{where}.target_modules"),
    }
    draft.put("model.peft_config", adapters, where, "dropout is off in SPIN")
    theirs.take_mapping(where)


def _targets(theirs: ForeignConfig, key: str) -> list[str]:
    given = theirs.take(key, ["attention_qkv"])
    names = [given] if isinstance(given, str) else list(given)
    if unknown := [name for name in names if name not in _LORA_TARGETS]:
        raise theirs.refuse(key, f"{unknown[0]} is none of {', '.join(_LORA_TARGETS)}")
    return list(dict.fromkeys(target for name in names for target in _LORA_TARGETS[name]))
