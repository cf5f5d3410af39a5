"""The loaders of an SFT YAML as SPIN's."""

from __future__ import annotations

from spin_composer.errors import InputError, format_value
from spin_composer.importers.draft import Draft
from spin_composer.settings.dataset import LEGACY_TOKENIZATION
from spin_composer.settings.fields import is_int

_NEEDLESS = {
    "packing_ratio": "SPIN does not pack rows, and its batches carry no padding anyway",
    "max_leftover_bins_to_keep": "SPIN does not pack rows",
    "auto_packing_replication": "SPIN does not pack rows",
    "replication": "SPIN has no sequence parallelism",
    "seq_parallel_replication": "SPIN has no sequence parallelism",
}
_TURNS = (
    "as LLM Foundry's SFT tokenized its rows; remove it for a model tuned by other tools (TRL, "
    "axolotl)"
)


def convert_loaders(draft: Draft) -> None:
    """Make the training loader, and evaluation loaders of fine-tuning rows, SPIN's.

    Raises:
        InputError: The training data has no prompts.
    """
    name = draft.value("train_loader.name")
    if name != "finetuning":
        raise InputError(
            f"{draft.where}: train_loader.name={format_value(name)} has no prompts and responses. "
            "Give the YAML of an SFT, whose train_loader is called finetuning."
        )
    draft.change("train_loader.name", "spin", "reads the same rows, and plays their prompts")
    _convert_dataset(draft, "train_loader.dataset")
    draft.default(
        "max_seq_len", draft.value("train_loader.dataset.max_seq_len"),
        "LLM Foundry asks for it at the top",
    )  # fmt: skip
    for where in _evaluation_loaders(draft):
        if draft.value(f"{where}.name") == "finetuning":
            draft.change(f"{where}.name", "spin", "held-out rows by the very ids of training")
            _convert_dataset(draft, f"{where}.dataset")
            _check_rows_per_batch(draft)
    for key in ("icl_tasks", "icl_tasks_str", "eval_gauntlet", "eval_gauntlet_str"):
        if draft.value(key):
            draft.remark(key, "stays: evaluated at eval_interval beside the held-out rows")


def _evaluation_loaders(draft: Draft) -> list[str]:
    found = []
    for key in ("eval_loader", "eval_loaders"):
        count = draft.yaml.length(key)
        if count is not None:
            found += [f"{key}.{place}" for place in range(count)]
        elif draft.yaml.names(key):
            found.append(key)
    return found


def _convert_dataset(draft: Draft, where: str) -> None:
    for key, why in _NEEDLESS.items():
        draft.drop(f"{where}.{key}", why)
    samples = draft.value(f"{where}.epoch_size")
    draft.drop(f"{where}.epoch_size", "SPIN reads every row; samples_per_iteration takes fewer")
    if is_int(samples) and where == "train_loader.dataset":
        draft.change(
            "algorithms.spin.samples_per_iteration", samples, "the SFT's epoch_size, as prompts"
        )
    kept = {
        "target_responses": ("last", "SPIN plays a conversation's last response only"),
        "target_prompts": ("none", "SPIN never trains on prompts"),
    }
    for key, (value, why) in kept.items():
        if draft.value(f"{where}.{key}", value) != value:
            draft.change(f"{where}.{key}", value, why)
    draft.change(f"{where}.tokenize", LEGACY_TOKENIZATION, _TURNS)


def _check_rows_per_batch(draft: Draft) -> None:
    rows = draft.value("device_eval_batch_size", 1)
    if not (is_int(rows) and rows > 0):
        draft.change("device_eval_batch_size", 1, "SPIN's evaluation wants a whole number of rows")
