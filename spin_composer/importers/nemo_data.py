"""The data of a NeMo-Aligner config as loaders of SPIN."""

from __future__ import annotations

import math
from typing import Any

from spin_composer.importers.foreign import ForeignConfig
from spin_composer.importers.fresh import FreshYaml
from spin_composer.importers.nemo_training import BATCHES
from spin_composer.settings.fields import is_int, is_number

_TRAIN, _HELD_OUT = "model.data.train_ds", "model.data.validation_ds"
_COLUMNS = tuple(f"{_TRAIN}.{name}" for name in ("context_key", "label_key", "prompt_template"))
_FILE = f"{_HELD_OUT}.file_path"
_INTERVAL, _LIMIT = "trainer.spin.val_check_interval", "trainer.spin.limit_val_batches"


def put_data(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put the loaders of training and of held-out rows.

    Raises:
        InputError: The rows would be read as other texts than by NeMo.
    """
    chat = theirs.take("model.data.chat")
    keys = (theirs.take(_COLUMNS[0], "input"), theirs.take(_COLUMNS[1], "output"))
    template = theirs.take(_COLUMNS[2])
    plain = "{%s}{%s}" % keys  # noqa: UP031  (braces within braces)
    named = ["model.data.chat"]
    if chat:
        for key in _COLUMNS:
            theirs.explain(key, "a row is a conversation (model.data.chat)")
    elif template in (None, plain):
        named += _COLUMNS
    else:
        raise theirs.refuse(
            f"{_TRAIN}.prompt_template",
            f"prompt and response of a row stand as they are: write what lies between them into "
            f"the rows' {keys[0]}, and set it to '{plain}'",
        )
    why = "rows of conversations" if chat else "rows of prompt, response"
    draft.yaml.set("train_loader.name", "spin")
    dataset = _dataset(theirs, _TRAIN, chat, keys)
    draft.put("train_loader.dataset", dataset, ", ".join([f"{_TRAIN}.file_path", *named]), why)
    if off := _no_evaluation(theirs):
        for key in (_FILE, _INTERVAL, _LIMIT):
            theirs.explain(key, off)
        return
    draft.yaml.set("eval_loader.name", "spin")
    draft.put("eval_loader.dataset", _dataset(theirs, _HELD_OUT, chat, keys), _FILE)
    interval = theirs.take(_INTERVAL)
    if is_int(interval):
        draft.put("eval_interval", f"{interval}ba", _INTERVAL)
    else:
        why = "not within an epoch; 100ba counts in batches"
        draft.put("eval_interval", "1ep", "" if interval is None else _INTERVAL, why)


def _no_evaluation(theirs: ForeignConfig) -> str:
    """Return why held-out rows are not evaluated; empty if they are."""
    if theirs.take(_FILE) is None:
        return "there are no held-out rows"
    for key in (_INTERVAL, _LIMIT):
        value = theirs.take(key)
        if is_number(value) and value <= 0:
            return f"{key} switches evaluation off"
    return ""


def put_evaluation_length(theirs: ForeignConfig, draft: FreshYaml, ranks: int) -> None:
    """Put how many held-out rows are evaluated: NeMo counts its own batches, of all GPUs.

    Args:
        theirs: The config.
        draft: The YAML, with the rows of a GPU's batch.
        ranks: Number of GPUs.
    """
    limit = theirs.take(_LIMIT)
    if draft.yaml.has("eval_loader") and is_int(limit):
        key, batch = theirs.take_first(f"{_HELD_OUT}.global_batch_size", *BATCHES)
        if not is_int(batch):
            raise theirs.refuse(key, "give the rows of a held-out batch")
        # What llm-foundry takes where there is no device_eval_batch_size.
        rows = draft.value("device_eval_batch_size") or draft.value("device_train_microbatch_size")
        batches = math.ceil(limit * batch / (ranks * (rows or 1)))
        why = f"{limit * batch} rows, in batches of device_eval_batch_size per GPU"
        draft.put("eval_subset_num_batches", batches, f"{_LIMIT}, {key}", why)


def _dataset(
    theirs: ForeignConfig, where: str, chat: object, keys: tuple[str, str]
) -> dict[str, Any]:
    files = theirs.take(f"{where}.file_path")
    if not files or not isinstance(files, (str, list)):
        raise theirs.refuse(f"{where}.file_path", "give a jsonl file, or a list of them")
    dataset: dict[str, Any] = {"hf_name": "json", "split": "train"}
    dataset["hf_kwargs"] = {"data_files": files}
    if not chat and keys != ("input", "output"):
        dataset["preprocessing_fn"] = {"prompt": keys[0], "response": keys[1]}
    return {**dataset, "max_seq_len": "${max_seq_len}"}
