"""What the command ``judge`` judges: a run by its YAML, or a folder of exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_composer.errors import InputError
from spin_composer.judge.exports import Export, exports_in, exports_of_run
from spin_composer.report.outline import outline_of
from spin_composer.settings.eval_loaders import loaders
from spin_composer.settings.generation import GenerationSettings
from spin_composer.settings.judge import JUDGE, JUDGE_SECTION, JudgeSettings
from spin_composer.settings.section import Config, fill
from spin_composer.settings.yaml import read_overrides, read_yaml, to_mapping, validate

_SHORT = "judge."
"""Short for the section, on the command line."""
_MODEL_KEYS = (
    "trust_remote_code", "use_auth_token", "use_flash_attention_2", "config_overrides",
    "allow_embedding_resizing", "attn_implementation",
)  # fmt: skip
"""Keys of a YAML's model that also hold for its exports."""
_SOURCE_KEYS = (
    "hf_name", "split", "hf_kwargs", "remote", "local", "streams", "stream_name", "stream_config",
)  # fmt: skip
"""Keys of a dataset block that say which data it is; others say how it is read."""


@dataclass(frozen=True)
class JudgedRun:
    """What a command judges."""

    folder: Path
    """Where the result goes."""
    start: str
    """The start model: a folder or a name on the Hub."""
    start_adapters: str | None
    """Adapters that the start model has."""
    exports: Sequence[Export]
    model: Mapping[str, Any]
    """Arguments of the models."""
    tokenizer: tuple[str, Mapping[str, Any]]
    """Its name and arguments."""
    dataset: Config
    """The held-out rows' block."""
    settings: JudgeSettings
    generation: GenerationSettings
    precision: str = "fp32"


def read_run(
    run: Path, overrides: Sequence[str] = (), data: str | None = None, start: str | None = None
) -> JudgedRun:
    """Read what is to be judged.

    Args:
        run: The run's YAML, or a folder of exports, which needs ``data`` and ``start``.
        overrides: ``key=value``: the YAML's settings; ``judge.rows=100`` is short for the
            callback's.
        data: The held-out rows; the YAML's, if not given.
        start: The start model; the YAML's, if not given.

    Raises:
        InputError: There are no exports or no held-out rows, or a setting is wrong.
    """
    given = [
        f"{JUDGE_SECTION}.{text.removeprefix(_SHORT)}" if text.startswith(_SHORT) else text
        for text in overrides
    ]
    return (_of_folder if run.is_dir() else _of_yaml)(run, given, data, start)


def _of_yaml(
    path: Path, overrides: Sequence[str], data: str | None, start: str | None
) -> JudgedRun:
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"{path} cannot be judged. Give a run's YAML, or a folder of exports.")
    config = to_mapping(read_yaml(path, overrides))
    run_settings = validate(config)
    model = config["model"]
    if model["name"] != "hf_spin_lm":
        raise InputError(
            f"{path}: model.name={model['name']} is not judged from its exports. Add the callback "
            "spin_judge to the run."
        )
    settings = _settings(config)
    if start is None and (config.get("load_path") or not model.get("pretrained", True)):
        raise InputError(
            f"{path}: the run does not start with model.pretrained_model_name_or_path (load_path, "
            "or pretrained=false). Give the start model as a folder: --start FOLDER."
        )
    tokenizer = config["tokenizer"]
    return JudgedRun(
        folder=outline_of(config, run_settings, str(path)).store,
        start=start or str(model["pretrained_model_name_or_path"]),
        start_adapters=None if start else model.get("pretrained_lora_id_or_path"),
        exports=exports_of_run(config, str(path)),
        model={key: model[key] for key in _MODEL_KEYS if key in model},
        tokenizer=(str(tokenizer["name"]), dict(tokenizer.get("kwargs") or {})),
        dataset=_dataset(config, settings, data, str(path)),
        settings=settings,
        generation=run_settings.generation,
        precision=str(config.get("precision") or "fp32"),
    )


def _of_folder(
    folder: Path, overrides: Sequence[str], data: str | None, start: str | None
) -> JudgedRun:
    exports = exports_in(folder)
    if start is None or data is None:
        missing = "--start MODEL" if start is None else "--data ROWS"
        raise InputError(
            f"{folder} is a folder of exports, and {missing} is missing. Give it, or the run's "
            "YAML in place of the folder."
        )
    for text in overrides:
        if not text.startswith(f"{JUDGE_SECTION}."):
            raise InputError(f"{text!r}: a folder of exports has judge.<key>=value settings only.")
    settings = _settings(to_mapping(read_overrides(overrides)))
    return JudgedRun(
        folder=folder,
        start=start,
        start_adapters=None,
        exports=exports,
        model={},
        tokenizer=(start, {}),
        dataset=_dataset({}, settings, data, str(folder)),
        settings=settings,
        generation=GenerationSettings(),
    )


def _settings(config: Config) -> JudgeSettings:
    callbacks = config.get("callbacks") or {}
    return fill(JudgeSettings, callbacks.get(JUDGE) or {})


def _dataset(config: Config, settings: JudgeSettings, data: str | None, where: str) -> Config:
    """Return the held-out rows' block: ``--data``, the judge's own, or the first evaluation's.

    ``--data`` is read as training reads its rows.
    """
    from spin_composer.data.sources import source_keys

    trained = dict((config.get("train_loader") or {}).get("dataset") or {"max_seq_len": 2048})
    if data is not None:
        given = source_keys(data, "train")
        kept = {key: value for key, value in trained.items() if key not in _SOURCE_KEYS}
        if "hf_name" not in given:
            kept.pop("safe_load", None)  # of files; an MDS data set is refused with it
        return {**kept, **given}
    if settings.dataset is not None:
        return settings.dataset
    given = [loader for _, loader in loaders(config) if loader.get("dataset")]
    ours = [loader for loader in given if loader.get("name") == "spin"]  # the callback's rows
    found = [loader["dataset"] for loader in ours or given]
    if not found:
        raise InputError(
            f"{where} names no held-out rows: it has no eval_loader. Give --data ROWS, or set "
            f"{JUDGE_SECTION}.dataset."
        )
    return found[0]
