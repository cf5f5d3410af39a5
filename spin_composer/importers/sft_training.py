"""The training settings of an SFT YAML as those of a game of self-play."""

from __future__ import annotations

import re

from spin_composer.errors import InputError, format_value
from spin_composer.importers.draft import Draft
from spin_composer.settings.fields import is_int, is_number

ITERATIONS = 3
"""T of the paper's main runs (arXiv 2401.01335, section 6)."""
EPOCHS = "2ep"
PEAK, PEAK_OF_LORA = 5.0e-7, 5.0e-6
"""The paper's learning rate, and the tenfold that adapters take."""
MOST_NEW_TOKENS = 512

_DECAYS = {
    "linear_decay_with_warmup": "linear",
    "cosine_with_warmup": "cosine",
    "constant_with_warmup": "constant",
    "inv_sqrt_with_warmup": "linear",
}


def convert_training(draft: Draft) -> None:
    """Convert duration, learning rate and batches, and add ``algorithms.spin``.

    Raises:
        InputError: A batch size is given in a way that SPIN does not know.
    """
    _convert_scheduler(draft)
    draft.change(
        "max_duration", f"{ITERATIONS}iter",
        f"iterations of play and {EPOCHS.removesuffix('ep')} epochs of training each",
    )  # fmt: skip
    _convert_batches(draft)
    _add_game(draft)
    interval = str(draft.value("eval_interval", "1ep"))
    if not interval.endswith(("ep", "ba", "iter")):
        draft.change("eval_interval", "1ep", "counted in epochs: the duration is in iterations")


def _convert_scheduler(draft: Draft) -> None:
    name = draft.value("scheduler.name")
    given = draft.value("scheduler", {})
    decay = _DECAYS.get(str(name), "linear")
    warmup, alpha = str(given.get("t_warmup", "0.1dur")), given.get("alpha_f", 0.0)
    why = "warms up and decays within each iteration; Composer's own do not restart"
    found = re.fullmatch(r"\d+ba|(\d*\.?\d+)dur", warmup)
    if found is None or float(found[1] or 0) > 1:
        why += f"; t_warmup was {warmup}, and is counted in dur of an iteration or in ba here"
        warmup = "0.1dur"
    ok = is_number(alpha) and 0 <= alpha <= 1
    lost = sorted(set(given) - {"name", "t_warmup", "alpha_f"})
    if lost:
        why += f"; without {', '.join(lost)}"
    if draft.yaml.has("scheduler"):
        draft.yaml.comment("scheduler", f"was {name}; {why}")
    for key in lost:
        draft.yaml.remove(f"scheduler.{key}")
    draft.yaml.set("scheduler.name", "spin")
    draft.yaml.set("scheduler.t_warmup", warmup)
    draft.yaml.set("scheduler.decay", decay)
    draft.yaml.set("scheduler.alpha_f", alpha if ok else 0.0)
    draft.note("scheduler", f"{name} -> spin: {why}")


def _convert_batches(draft: Draft) -> None:
    batch = draft.value("global_train_batch_size")
    if not (is_int(batch) and batch > 0):
        raise InputError(
            f"{draft.where}: global_train_batch_size={format_value(batch)} must be a positive "
            "number: SPIN's batches are so many pairs. Set it (device_train_batch_size times the "
            "number of GPUs)."
        )
    draft.remark(
        "global_train_batch_size", "counts pairs now, each a real and a generated response"
    )
    for key in ("device_train_batch_size", "device_train_grad_accum", "n_gpus"):
        draft.drop(key, "follows from global_train_batch_size")
    micro = draft.value("device_train_microbatch_size", "auto")
    if micro != "auto":
        halved = max(1, int(micro) // 2) if is_number(micro) else 1
        if is_int(micro) and micro == 1:
            draft.remark("device_train_microbatch_size", "counts pairs now: twice the sequences")
        else:
            draft.change(
                "device_train_microbatch_size", halved,
                "counts pairs now: half as many hold as many sequences",
            )  # fmt: skip
    subset = draft.value("train_subset_num_batches", -1)
    if is_int(subset) and subset > 0:
        draft.change(
            "algorithms.spin.samples_per_iteration", subset * batch,
            "train_subset_num_batches times the batch, as prompts",
        )  # fmt: skip
    draft.drop("train_subset_num_batches", "it does not reach the iterations' loaders")


def _add_game(draft: Draft) -> None:
    where = "algorithms.spin"
    draft.change(f"{where}.iteration_length", EPOCHS, "epochs of training per iteration")
    draft.change(
        f"{where}.beta", 0.1, "pull toward the opponent; one number, or one per iteration (the "
        "paper's: [0.1, 0.1, 5.0])",
    )  # fmt: skip
    peak = PEAK_OF_LORA if draft.value("model.peft_config") else PEAK
    rate = draft.value("optimizer.lr")
    if not is_number(rate) or rate > peak:
        draft.change(
            f"{where}.learning_rate", peak,
            "in place of optimizer.lr, which is an SFT's: SPIN needs a "
            "far smaller one (the paper's 5e-7; about tenfold for LoRA)",
        )  # fmt: skip
    longest = draft.value("train_loader.dataset.max_seq_len") or draft.value("max_seq_len")
    new = min(MOST_NEW_TOKENS, longest // 2) if is_int(longest) else MOST_NEW_TOKENS
    draft.change(
        f"{where}.generation.max_new_tokens", max(1, new),
        "longest response of the opponent; spin-composer check says how long the real ones are",
    )  # fmt: skip
