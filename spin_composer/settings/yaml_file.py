"""A YAML's file: its text and its settings, or one line that says why it has none."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from spin_composer.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from yaml import YAMLError

_REMEDY = "Give the path of a YAML."


def read_text(path: str | Path) -> str:
    """Return a YAML's text.

    Raises:
        InputError: The file is missing, cannot be read, or is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. {_REMEDY}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder. {_REMEDY}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not text in UTF-8 (byte {error.start}). Save it as UTF-8, or give the path "
            "of a YAML."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}). {_REMEDY}") from None


def load_settings(path: str | Path) -> DictConfig:
    """Return a YAML's settings, ``${...}`` unresolved.

    Raises:
        InputError: There is no such file, or it is no YAML mapping with settings.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    text = StringIO(read_text(path))
    try:
        config = OmegaConf.load(text)
    except OSError:  # OmegaConf's, for a YAML that is a single value
        raise not_a_mapping(path) from None
    except YAMLError as error:
        raise malformed(path, error) from None
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig) or not config:
        raise not_a_mapping(path)
    return config


def not_a_mapping(where: object) -> InputError:
    """Return the error for a file that holds no settings."""
    return InputError(f"{where} does not contain settings. It must be a YAML mapping.")


def malformed(where: object, error: YAMLError) -> InputError:
    """Return the error for a text that is not YAML: where it stops being it, and how."""
    mark = getattr(error, "problem_mark", None)
    at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    said = getattr(error, "problem", None) or " ".join(str(error).split())
    context = getattr(error, "context", None)
    said = f"{context} {said}" if context else said
    return InputError(f"{where}{at} is not YAML: {said}. Correct it there.")
