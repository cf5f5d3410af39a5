"""The game, the optimizer and the adapters of a NeMo-Aligner config."""

from __future__ import annotations

from typing import Any

from spin_composer.importers.foreign import NO_DROPOUT, ForeignConfig, Refused, duration
from spin_composer.importers.fresh import FreshYaml
from spin_composer.settings.fields import is_int, is_number

BATCHES = ("model.global_batch_size", "model.data.train_ds.global_batch_size")
"""Keys of the pairs of an optimizer step."""
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
_LORA = "model.peft.lora_tuning"
_LORA_REFUSED: Refused = {
    f"{_LORA}.layer_selection": ((None,), "all layers get adapters: set it to null"),
    f"{_LORA}.weight_tying": ((None, False), "each layer has adapters of its own: set it to False"),
}
_LORA_EXPLAINED = {
    "column_init_method": "adapters begin as PEFT's do: at no change",
    "row_init_method": "adapters begin as PEFT's do: at no change",
    "adapter_dropout": NO_DROPOUT,
    "dropout_position": NO_DROPOUT,
    "position_embedding_strategy": "of weight_tying",
    "variant": "q, k and v have adapters of their own",
}


def put_game(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put the duration and ``algorithms.spin``.

    Raises:
        InputError: A value has no counterpart.
    """
    names = ("trainer.spin.max_iterations", "model.spin.num_rounds")  # now, and at first
    key, iterations = theirs.take_first(*names)
    draft.put("max_duration", f"{1 if iterations is None else iterations}iter", key)
    key = "trainer.spin.max_epochs"
    epochs = theirs.take(key, 1)
    why = "epochs per iteration"
    if epochs != 1:
        why += ", all on the iteration's one response per row; NeMo-Aligner samples in each epoch"
    draft.put(f"{_GAME}.iteration_length", f"{epochs}ep", key, why)
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
    clip = theirs.take_number(key, 0.0)
    if clip > 0:
        clipping = {"clipping_type": "norm", "clipping_threshold": clip}
        draft.put("algorithms.gradient_clipping", clipping, key)
    else:
        theirs.explain(key, "gradients are not clipped")


def _put_rows(theirs: ForeignConfig, draft: FreshYaml) -> None:
    key = "trainer.spin.limit_train_batches"
    limit = theirs.take(key)
    batch_key, batch = theirs.take_first(*BATCHES)
    if limit is None or (is_number(limit) and (limit < 0 or (limit == 1 and not is_int(limit)))):
        theirs.explain(key, "every row is played")
    elif is_int(limit) and is_int(batch) and limit > 0:
        samples, names = limit * batch, f"{key}, {batch_key}"
        draft.put(f"{_GAME}.samples_per_iteration", samples, names, "as prompts")
    else:
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
    names = ("model.spin.rollout_micro_batch_size", "model.spin.generation_batch_size")
    key, rows = theirs.take_first(*names)  # now, and at first
    if rows is not None:
        draft.put(f"{_GENERATION}.batch_size", rows, key, "more is faster: as many as fit")


def put_optimizer(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put optimizer and schedule.

    Raises:
        InputError: Their kinds have no counterpart.
    """
    key = "model.optim.name"
    name = theirs.take_one_of(key, _ADAM, _ADAM[0], ", or write the optimizer by hand")
    key = "model.optim.lr"
    rate = theirs.take(key)
    if not (is_number(rate) and rate > 0):
        raise theirs.refuse(key, "give the peak learning rate")
    draft.put("optimizer.name", "decoupled_adamw", "model.optim.name", f"was {name}")
    draft.put("optimizer.lr", float(rate), key)
    betas = theirs.take("model.optim.betas", [0.9, 0.999])
    draft.put("optimizer.betas", betas, "model.optim.betas")
    draft.put("optimizer.eps", theirs.take_number("model.optim.eps", 1e-8), "model.optim.eps")
    key = "model.optim.weight_decay"
    given = theirs.take_number(key, 0.01 if name == "adamw" else 0.0)  # torch's and apex's
    if given > 0 and name == "adam":
        raise theirs.refuse(
            key, "model.optim.name=adam adds it to the gradients, and here it is decoupled: use "
            "adamw, or set it to 0"
        )  # fmt: skip
    decay = _rounded(given * float(rate))
    draft.put("optimizer.weight_decay", decay, key, "times the learning rate: here it is decoupled")
    _put_schedule(theirs, draft, float(rate))


def _put_schedule(theirs: ForeignConfig, draft: FreshYaml, rate: float) -> None:
    where = "model.optim.sched"
    name = theirs.take_one_of(f"{where}.name", _DECAYS, "WarmupPolicy")
    draft.yaml.set("scheduler.name", "spin")
    key, length = theirs.take_first(f"{where}.warmup_steps", f"{where}.warmup_ratio")
    warmup = f"{length or 0}ba" if key.endswith("steps") else duration(length)
    draft.put("scheduler.t_warmup", warmup, key, "in each iteration")
    draft.put("scheduler.decay", _DECAYS[name], f"{where}.name", f"was {name}, over the whole run")
    least = theirs.take_number(f"{where}.min_lr", 0.0)
    share = _rounded(min(1.0, least / rate))
    if _DECAYS[name] == "constant":
        theirs.explain(f"{where}.min_lr", "the rate stays constant")
    else:
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
    names = [f"{_LORA}.{name}" for name in ("adapter_dim", "alpha", "target_modules")]
    _check_lora(theirs, names)
    rank = theirs.take(names[0], 32)
    adapters: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": theirs.take(names[1], rank),
        "lora_dropout": 0.0,
        "target_modules": _targets(theirs, names[2]),
    }
    draft.put("model.peft_config", adapters, ", ".join([key, *names]), "dropout is off in SPIN")


def _check_lora(theirs: ForeignConfig, mapped: list[str]) -> None:
    """Refuse or explain what is not mapped of the section of adapters."""
    theirs.check_refused(_LORA_REFUSED)
    for key, value in theirs.values.items():
        name = key.removeprefix(f"{_LORA}.")
        if not key.startswith("model.peft.") or value is None or key in (*mapped, *_LORA_REFUSED):
            continue
        if name in _LORA_EXPLAINED:
            theirs.explain(key, _LORA_EXPLAINED[name])
        elif name != key:
            raise theirs.refuse(key, "write it in model.peft_config by hand, and set it to null")


def _targets(theirs: ForeignConfig, key: str) -> list[str]:
    names = theirs.take_texts(key, ["attention_qkv"])
    if unknown := [name for name in names if name not in _LORA_TARGETS]:
        raise theirs.refuse(key, f"{unknown[0]} is none of {', '.join(_LORA_TARGETS)}")
    return list(dict.fromkeys(target for name in names for target in _LORA_TARGETS[name]))
