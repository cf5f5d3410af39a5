"""The arguments of data commands: a run's YAML, or a source and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from spin_composer.data.sources import source_keys
from spin_composer.errors import InputError, format_value
from spin_composer.settings.dataset import DatasetConfig, read_config

_BLOCK = "train_loader.dataset"


@dataclass(frozen=True)
class DataArguments:
    """The data and the tokenizer of a command."""

    config: DatasetConfig
    """The checked dataset block."""
    title: str
    """The data's name as given on the command line."""
    tokenizer: str | None
    """The tokenizer's name or folder."""
    tokenizer_kwargs: dict[str, Any] = field(default_factory=dict)
    """``tokenizer.kwargs``."""

    def required_tokenizer(self) -> str:
        """Return the tokenizer's name.

        Raises:
            InputError: It was not given.
        """
        if self.tokenizer is None:
            raise InputError(
                f"{self.title}: the tokenizer is missing. Give --tokenizer NAME, or the run's YAML "
                "in place of the data."
            )
        return self.tokenizer


def read_arguments(
    source: str,
    overrides: Sequence[str],
    flags: Mapping[str, object],
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
) -> DataArguments:
    """Parse the arguments of a data command.

    Args:
        source: A run's YAML, or a file, folder, Hugging Face name or MDS.
        overrides: ``key=value``: of the YAML, or of the dataset block if there is no YAML.
        flags: Keys of the dataset block given as options; None if not given. ``subset`` is
            ``hf_kwargs.name``.
        tokenizer: Name of the tokenizer, if given.
        trust_remote_code: Let the tokenizer run code of its repository.

    Raises:
        InputError: Names the invalid argument or key.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    mapping = given.get("preprocessing_fn")
    if isinstance(mapping, str):
        given["preprocessing_fn"] = _mapping(mapping)
    if Path(source).suffix.lower() in (".yaml", ".yml"):
        dataset, named = _of_yaml(source, overrides)
    else:
        dataset, named = _of_source(source, overrides, str(given.pop("split", "train")))
    subset = given.pop("subset", None)
    if subset is not None:
        dataset["hf_kwargs"] = {**(dataset.get("hf_kwargs") or {}), "name": subset}
    kwargs = dict(named.get("kwargs") or {})
    if trust_remote_code:
        kwargs["trust_remote_code"] = True
    name = tokenizer if tokenizer is not None else named.get("name")
    return DataArguments(read_config({**dataset, **given}, _BLOCK), source, name, kwargs)


def _of_yaml(path: str, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the dataset block and the tokenizer's of a run's YAML."""
    from spin_composer.settings.yaml import check_keys, read_yaml, to_mapping

    config = to_mapping(read_yaml(path, overrides))
    own = {field.name for field in fields(DatasetConfig)} - {"max_seq_len"}
    for key in sorted(own & config.keys()):
        raise InputError(f"{key} is not a key of a run's YAML. Did you mean {_BLOCK}.{key}?")
    check_keys(config)
    loader = config.get("train_loader")
    dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
    if not isinstance(dataset, Mapping):
        raise InputError(
            f"{path}: {_BLOCK}={format_value(dataset)} names no data. Give the YAML of a run, "
            "whose train_loader has a dataset block, or the data themselves."
        )
    named = config.get("tokenizer") or {}
    if not isinstance(named, Mapping):
        raise InputError(
            f"{path}: tokenizer={format_value(named)} is not a mapping. Write tokenizer: {{name: "
            "...}."
        )
    return dict(dataset), dict(named)


def _of_source(
    source: str, overrides: Sequence[str], split: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the dataset block of a source, and the tokenizer's keys given beside it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from spin_composer.settings.yaml import to_mapping

    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise InputError(
                f"{override!r} is not a setting. Write key=value, a key of {_BLOCK} such as "
                "hf_kwargs.name=main."
            )
    try:
        given = to_mapping(
            OmegaConf.from_cli([override.removeprefix(f"{_BLOCK}.") for override in overrides])
        )
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError) as error:
        raise InputError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from None
    named = given.pop("tokenizer", None) or {}
    split = str(given.pop("split", split))
    return {"max_seq_len": 2048, **source_keys(source, split), **given}, dict(named)


def _mapping(text: str) -> str | dict[str, Any]:
    """Parse ``{prompt: a, response: b}``; return any other text unchanged."""
    if not text.lstrip().startswith("{"):
        return text
    import yaml

    try:
        made = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(
            f"--preprocessing-fn {text}: {' '.join(str(error).split())}. Write "
            "'{prompt: column, response: column}'."
        ) from None
    return made
