"""What a run writes, where, and how much."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from spin_composer.data.examples import ExampleDataset
from spin_composer.forecast.game import Iteration
from spin_composer.forecast.memory import STATE_BYTES, optimizer_numbers
from spin_composer.forecast.parameters import Parameters
from spin_composer.play.plan import (
    BetweenUnit,
    EarlierUnit,
    PlayUnit,
    earlier_iterations,
    plan_units,
)
from spin_composer.play.prepare import drawn_bytes, play_bytes
from spin_composer.report.figures import Section, bytes_text
from spin_composer.settings.ditto import DITTO
from spin_composer.settings.launch import EXPORTERS
from spin_composer.settings.section import Config
from spin_composer.settings.spin import SpinSettings

_HALF = ("bfloat16", "float16")


def outputs_section(
    cfg: Config,
    settings: SpinSettings,
    game: Sequence[Iteration],
    examples: ExampleDataset,
    found: Parameters | None,
) -> Section:
    """Return the folders that a run writes to, with the space that they take and have.

    Args:
        cfg: The YAML, checked.
        settings: Its algorithm's.
        game: The run's iterations.
        examples: The kept rows.
        found: The model's parameters; None if they are unknown.
    """
    section = Section("disk")
    name = str(cfg.get("run_name") or "")
    store = store_bytes(settings, len(game), examples)
    at = settings.remote_store or settings.store
    _add(section, "store", at.replace("{run_name}", name), store, "at most, all iterations")
    if folder := cfg.get("save_folder"):
        count = num_checkpoints(cfg, settings, game)
        size = checkpoint_bytes(cfg, found)
        total = None if size is None else size * count
        each = "unknown" if size is None else bytes_text(size)
        why = f"up to {count} of {each}"
        _add(section, "checkpoints", str(folder).replace("{run_name}", name), total, why)
    else:
        section.add("checkpoints", None, "none: save_folder is not set, the run cannot be resumed")
    exporters = _exporters(cfg)
    for callback, given in exporters.items():
        one = export_bytes(given, found)
        total = None if one is None else one * len(game)
        folder = str(given.get("save_folder")).replace("{run_name}", name)
        why = f"{len(game)} of {'unknown' if one is None else bytes_text(one)}, {callback}"
        _add(section, "exports", folder, total, why)
    if not exporters:
        section.add("exports", None, "none: there is no callback that exports")
    loggers = sorted(cfg.get("loggers") or {})
    section.add("loggers", loggers, ", ".join(loggers) or "none: the console and the store only")
    return section


def store_bytes(settings: SpinSettings, num_iterations: int, examples: ExampleDataset) -> int:
    """Return an upper bound of the self-play store's size, replayed pairs included."""
    longest, own = settings.generation.max_new_tokens, list[int]()
    total = 0
    for k in range(num_iterations):
        earlier = earlier_iterations(k, settings)
        units = plan_units(settings, 0, k, len(examples), dict.fromkeys(earlier, 1))
        played = [unit for unit in units if isinstance(unit, PlayUnit)]
        drawn = [unit for unit in units if isinstance(unit, (EarlierUnit, BetweenUnit))]
        own.append(play_bytes(played, examples, longest))
        total += own[k] + drawn_bytes(drawn, examples, longest)
        total += sum(own[j] for j in earlier if settings.game != DITTO)
    return total


def num_checkpoints(cfg: Config, settings: SpinSettings, game: Sequence[Iteration]) -> int:
    """Return how many checkpoints are kept at most: one at each iteration's end at least."""
    given = str(cfg.get("save_interval", "1000ba"))
    found = re.fullmatch(r"(\d+)(iter|ep|ba)", given)
    within = 0
    if found and found[2] != "iter":
        epochs = len(game) * settings.epochs_per_iteration
        whole = epochs if found[2] == "ep" else sum(one.batches for one in game)
        within = whole // max(1, int(found[1]))
    if found and found[2] == "ep" and settings.epochs_per_iteration % max(1, int(found[1])) == 0:
        made = within  # the iterations' ends are among them
    else:
        made = within + len(game)
    kept = cfg.get("save_num_checkpoints_to_keep", -1)
    return made if kept == -1 else min(made, int(kept))


def checkpoint_bytes(cfg: Config, found: Parameters | None) -> int | None:
    """Return the size of a checkpoint, of adapters alone for LoRA; None if it is unknown."""
    numbers = optimizer_numbers(cfg["optimizer"])
    if found is None or (numbers is None and not cfg.get("save_weights_only")):
        return None
    model = cfg["model"]
    alone = model.get("peft_config") and model.get("should_save_peft_only", True)
    weights = found.weight_bytes * (found.trained if alone else found.total)
    if cfg.get("save_weights_only"):
        return weights
    return weights + STATE_BYTES * (numbers or 0) * found.trained


def export_bytes(exporter: Config, found: Parameters | None) -> int | None:
    """Return the size of an exported folder's weights; None if it is unknown."""
    if found is None:
        return None
    width = 2 if str(exporter.get("precision", "float32")) in _HALF else 4
    adapters = found.trained != found.total and not exporter.get("merge_adapters")
    return width * (found.trained if adapters else found.total)


def _exporters(cfg: Config) -> dict[str, Config]:
    """Return the callbacks that export, with their settings; llm-foundry's if there is none."""
    callbacks = cfg.get("callbacks") or {}
    given = {name: callbacks[name] for name in sorted(EXPORTERS & set(callbacks))}
    if not given and cfg.get("save_folder") and not cfg.get("save_weights_only"):
        return {"hf_checkpointer": {"save_folder": f"{cfg['save_folder']}/huggingface"}}
    return {name: one for name, one in given.items() if isinstance(one, Mapping)}


def _add(section: Section, name: str, place: str, size: int | None, why: str) -> None:
    text = "unknown size" if size is None else bytes_text(size)
    free = None if "://" in place else _free(Path(place))
    left = "" if free is None else f"; {bytes_text(free)} free here"
    value = {"place": place, "bytes": size, "free_bytes": free}
    section.add(name, value, f"{place}: {text} ({why}){left}")


def _free(folder: Path) -> int:
    at = folder.absolute()
    while not at.exists():
        at = at.parent
    return shutil.disk_usage(at).free
