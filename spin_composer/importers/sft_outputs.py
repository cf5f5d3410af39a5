"""What an SFT YAML writes, as what a SPIN run writes: folders of its own."""

from __future__ import annotations

from spin_composer.importers.draft import Draft
from spin_composer.settings.launch import EXPORTERS

SAVE_FOLDER = "runs/{run_name}/checkpoints"
EXPORT_FOLDER = "runs/{run_name}/hf"
EXPORT_NAME = "iter{iteration}"
_SWAPPED = ("curriculum_learning", "dataset_swap")


def convert_outputs(draft: Draft, stem: str) -> None:
    """Give the run a name, folders, checkpoints and exports of its own.

    Args:
        draft: The YAML.
        stem: Names a run that has no name.
    """
    name = draft.value("run_name")
    draft.change(
        "run_name", f"{name or stem}-spin",
        "names the folders below; the same name resumes the run",
    )  # fmt: skip
    _set_folder(draft, "save_folder", SAVE_FOLDER)
    draft.change("save_interval", "1iter", "at each iteration's end, before the next one's play")
    if draft.value("save_num_checkpoints_to_keep") == 0:
        draft.change("save_num_checkpoints_to_keep", 1, "play needs the iteration's first one")
    for key in ("save_overwrite", "save_weights_only"):
        draft.drop(key, "a run that is started again resumes")
    _convert_callbacks(draft)


def _convert_callbacks(draft: Draft) -> None:
    for name in _SWAPPED:
        draft.drop(f"callbacks.{name}", "in SPIN the training data are each iteration's pairs")
    exporter = "callbacks.hf_checkpointer"
    if draft.yaml.has(exporter):
        _set_folder(draft, f"{exporter}.save_folder", EXPORT_FOLDER)
        draft.change(f"{exporter}.save_interval", "1iter", "each iteration's policy")
        draft.change(f"{exporter}.huggingface_folder_name", EXPORT_NAME, "iter0, iter1, ...")
        return
    given = EXPORTERS & set(draft.yaml.names("callbacks"))
    if not given and draft.value("model.name") == "hf_spin_lm":
        draft.change(
            "callbacks.hf_exporter",
            {"save_folder": EXPORT_FOLDER, "huggingface_folder_name": EXPORT_NAME},
            "each iteration's policy as a Hugging Face folder",
        )


def _set_folder(draft: Draft, path: str, local: str) -> None:
    """Give the run a folder of its own where the SFT has one, or none.

    A folder named by the run is its own already.
    """
    given = str(draft.value(path, ""))
    if "{run_name}" in given:
        return
    if not given:
        draft.change(path, local, "without checkpoints a run cannot be resumed")
        return
    own = f"{given.rstrip('/')}/{{run_name}}" if "://" in given else local
    draft.change(path, own, "a folder of the run's own: it must not resume the SFT")
