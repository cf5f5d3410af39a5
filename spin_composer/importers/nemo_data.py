"""The data of a NeMo-Aligner config as loaders of SPIN."""

from __future__ import annotations

from typing import Any

from spin_composer.importers.foreign import ForeignConfig
from spin_composer.importers.fresh import FreshYaml
from spin_composer.settings.fields import is_int

_TRAIN, _HELD_OUT = "model.data.train_ds", "model.data.validation_ds"


def put_data(theirs: ForeignConfig, draft: FreshYaml) -> None:
    """Put the loaders of training and of held-out rows.

    Raises:
        InputError: The rows would be read as other texts than by NeMo.
    """
    chat = theirs.take("model.data.chat")
    keys = (
        theirs.take(f"{_TRAIN}.context_key", "input"),
        theirs.take(f"{_TRAIN}.label_key", "output"),
    )
    template = theirs.take(f"{_TRAIN}.prompt_template")
    plain = "{%s}{%s}" % keys  # noqa: UP031  (braces within braces)
    if not chat and template not in (None, plain):
        raise theirs.refuse(
            f"{_TRAIN}.prompt_template",
            f"prompt and response of a row stand as they are: write what lies between them into "
            f"the rows' {keys[0]}, and set it to '{plain}'",
        )
    draft.yaml.set("train_loader.name", "spin")
    draft.put("train_loader.dataset", _dataset(theirs, _TRAIN, chat, keys), f"{_TRAIN}.file_path")
    draft.note("model.data.chat", "rows of conversations" if chat else "rows of prompt, response")
    if f"{_HELD_OUT}.file_path" in theirs.values:
        draft.yaml.set("eval_loader.name", "spin")
        held_out = _dataset(theirs, _HELD_OUT, chat, keys)
        draft.put("eval_loader.dataset", held_out, f"{_HELD_OUT}.file_path")
        _put_evaluation(theirs, draft)


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


def _put_evaluation(theirs: ForeignConfig, draft: FreshYaml) -> None:
    key = "trainer.spin.val_check_interval"
    interval = theirs.take(key)
    if is_int(interval) and interval > 1:
        draft.put("eval_interval", f"{interval}ba", key)
    else:
        draft.put("eval_interval", "1ep", key, "not within an epoch; 100ba counts in batches")
    key = "trainer.spin.limit_val_batches"
    limit = theirs.take(key)
    if is_int(limit) and limit > 0:
        draft.put("eval_subset_num_batches", limit, key)
    elif limit not in (None, 1.0):
        draft.put("eval_subset_num_batches", -1, key, "all; a number of batches takes fewer")
