"""A SPIN YAML that is written from nothing, each setting with the foreign key that it is of."""

from __future__ import annotations

from collections.abc import Mapping

from spin_composer.importers.draft import Change, Draft
from spin_composer.importers.sft_outputs import EXPORT_NAME
from spin_composer.importers.yaml_text import flow_text


class FreshYaml(Draft):
    """A draft that begins with a run's name.

    Args:
        where: The foreign config's file, for messages.
        run_name: The run's.
        theirs: The foreign key that names it; empty if none does.
        given: The foreign config's values by dotted name.
    """

    def __init__(self, where: str, run_name: str, theirs: str, given: Mapping[str, object]) -> None:
        super().__init__(f"run_name: {flow_text(run_name)}\n", where)
        self._given = given
        self.named: set[str] = set()
        """Foreign keys that a comment of the YAML names with what became of them."""
        self.yaml.comment("run_name", theirs)
        if theirs:
            self.named.add(theirs)
            self.changes.append(Change(theirs, f"run_name: {run_name}"))

    def put(self, path: str, value: object, theirs: str = "", why: str = "") -> None:
        """Set a value; ``theirs`` names the foreign keys that it is of, ``why`` says more."""
        keys = theirs.split(", ") if theirs else []
        given = [key for key in keys if self._given.get(key) is not None]
        self.named.update(given)
        if keys:
            theirs = ", ".join(given) or f"{theirs}'s default"
        said = "; ".join(part for part in (theirs, why) if part)
        self.yaml.set(path, value, said)
        shown = "" if isinstance(value, dict) else f": {flow_text(value)}"
        text = f"{path}{shown}" if theirs else f"{path}{shown} ({why})"
        self.changes.append(Change(theirs or "added", f"{text}; {why}" if theirs and why else text))

    def say(self, path: str, theirs: str, why: str) -> None:
        """Say above a setting what became of foreign keys that it is not of."""
        self.named.update(theirs.split(", "))
        self.yaml.comment(path, f"{theirs}: {why}")
        self.changes.append(Change(theirs, why))


def put_outputs(draft: FreshYaml, folder: str, theirs: str) -> None:
    """Set what the run writes, below one folder.

    Args:
        draft: The YAML.
        folder: May hold ``{run_name}``.
        theirs: The foreign key that names it; empty if none does.
    """
    why = "with a checkpoint wherever an iteration has been trained"
    draft.put("save_folder", f"{folder}/checkpoints", theirs, why)
    draft.yaml.set("save_interval", "1iter")
    exporter = {
        "save_folder": f"{folder}/hf",
        "save_interval": "1iter",
        "huggingface_folder_name": EXPORT_NAME,
        "precision": "float32" if draft.value("precision") == "fp32" else "bfloat16",
    }
    draft.put("callbacks.hf_exporter", exporter, "", "each iteration's policy as a folder")
    draft.yaml.set("callbacks.speed_monitor", {"window_size": 10})
    draft.yaml.set("callbacks.lr_monitor", {})
    draft.yaml.set("progress_bar", False)
    draft.yaml.set("log_to_console", True)
