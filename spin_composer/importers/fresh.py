"""A SPIN YAML that is written from nothing, each setting with the foreign key that it is of."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from spin_composer.importers.draft import Change, Draft
from spin_composer.importers.sft_outputs import EXPORT_NAME
from spin_composer.importers.yaml_text import flow_text


class FreshYaml(Draft):
    """A draft that begins with a run's name.

    Args:
        where: The foreign config's file, for messages.
        run_name: The run's.
        theirs: The foreign key that names it; empty if none does.
        given: All keys of the foreign config.
    """

    def __init__(
        self, where: str, run_name: str, theirs: str = "", given: Collection[str] = ()
    ) -> None:
        super().__init__(f"run_name: {flow_text(run_name)}\n", where)
        self._given = given
        self.yaml.comment("run_name", theirs)
        if theirs:
            self.changes.append(Change(theirs, f"run_name: {run_name}"))

    def put(self, path: str, value: object, theirs: str = "", why: str = "") -> None:
        """Set a value; ``theirs`` names the foreign key, ``why`` says more."""
        keys = theirs.split(", ") if theirs else []
        if keys and not any(given.startswith(keys[0]) for given in self._given):
            theirs += "'s default"
        said = "; ".join(part for part in (theirs, why) if part)
        self.yaml.set(path, value, said)
        shown = "" if isinstance(value, dict) else f": {flow_text(value)}"
        text = f"{path}{shown}" if theirs else f"{path}{shown} ({why})"
        self.changes.append(Change(theirs or "added", f"{text}; {why}" if theirs and why else text))


def put_sharding(draft: FreshYaml, ranks: int, recompute: bool, theirs: str) -> None:
    """Shard the model over the GPUs, if there are several.

    Args:
        draft: The YAML.
        ranks: Number of GPUs.
        recompute: Recompute activations in backward.
        theirs: The foreign key that says so.
    """
    sharding: dict[str, Any] = {
        "sharding_strategy": "FULL_SHARD",
        "mixed_precision": "DEFAULT",
        "activation_checkpointing": recompute,
        "activation_checkpointing_reentrant": False,
        "limit_all_gathers": True,
        "sync_module_states": True,
        "state_dict_type": "sharded",
        "use_orig_params": True,
    }
    if ranks > 1:
        draft.put(
            "fsdp_config", sharding, "", f"weights, gradients and optimizer over {ranks} GPUs"
        )
        if theirs:
            draft.note(theirs, f"fsdp_config.activation_checkpointing: {str(recompute).lower()}")


def put_outputs(draft: FreshYaml, folder: str, theirs: str, precision: str = "bfloat16") -> None:
    """Set what the run writes, below one folder.

    Args:
        draft: The YAML.
        folder: May hold ``{run_name}``.
        theirs: The foreign key that names it; empty if none does.
        precision: Of the exported weights.
    """
    why = "with a checkpoint wherever an iteration has been trained"
    draft.put("save_folder", f"{folder}/checkpoints", theirs, why)
    draft.yaml.set("save_interval", "1iter")
    exporter = {
        "save_folder": f"{folder}/hf",
        "save_interval": "1iter",
        "huggingface_folder_name": EXPORT_NAME,
        "precision": precision,
    }
    draft.put("callbacks.hf_exporter", exporter, "", "each iteration's policy as a folder")
    draft.yaml.set("callbacks.speed_monitor", {"window_size": 10})
    draft.yaml.set("callbacks.lr_monitor", {})
    draft.yaml.set("progress_bar", False)
    draft.yaml.set("log_to_console", True)
