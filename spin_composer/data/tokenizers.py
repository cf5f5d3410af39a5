"""Load the tokenizer of a data command, exactly like a training run."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from spin_composer.errors import InputError, format_value
from spin_composer.foundry.installed import foundry_is_imported, require_foundry
from spin_composer.settings.section import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# llm-foundry's own tokenizer, and the entry points of other packages' tokenizers.
_OF_FOUNDRY = "tiktoken"
_GROUP = "llmfoundry_tokenizers"
_NO_LIMIT = int(1e30)


def load_tokenizer(name: str, kwargs: Config | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a YAML's ``tokenizer: {name, kwargs}``.

    Args:
        name: A Hugging Face name, a folder, or a name that is registered with llm-foundry.
        kwargs: Arguments of ``AutoTokenizer.from_pretrained``, or of what is registered.

    Raises:
        InputError: It cannot be loaded, has no EOS token, or needs llm-foundry.
    """
    given = dict(kwargs or {})
    try:
        if _is_registered(name):
            from spin_composer.foundry.finetuning import build_tokenizer

            return build_tokenizer(name, given)
        return _from_pretrained(name, given)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"tokenizer={format_value(name)} cannot be loaded ({type(error).__name__}: "
            f"{format_value(str(error), 160)}). Give a Hugging Face name or a tokenizer's folder."
        ) from error


def _is_registered(name: str) -> bool:
    """Return whether a name is registered with llm-foundry, which must be installed then.

    It is imported for what it registers only: that takes seconds.
    """
    if os.sep in name and os.path.isdir(name):
        return False
    registers = {_OF_FOUNDRY, *(entry.name for entry in entry_points(group=_GROUP))}
    if name in registers:
        require_foundry(f"tokenizer={format_value(name)}")
    elif not foundry_is_imported():  # then code of the run may have registered more
        return False
    from spin_composer.foundry.finetuning import registered_tokenizers

    return name in registered_tokenizers


def _from_pretrained(name: str, given: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load a tokenizer as llm-foundry does."""
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    from spin_composer.pretrained.tokenizer_limits import check_encoding

    given.setdefault("trust_remote_code", False)  # transformers would ask on the terminal
    tokenizer: Any = AutoTokenizer.from_pretrained(name, **given)
    check_encoding(tokenizer)
    # from_pretrained uses the smaller of the argument and the folder's limit. The run's limit is
    # max_seq_len, not the tokenizer's.
    tokenizer.model_max_length = given.get("model_max_length", _NO_LIMIT)
    if tokenizer.eos_token is None:
        raise InputError(
            f"tokenizer={format_value(name)} has no EOS token. Set tokenizer.kwargs.eos_token to a "
            "token of its vocabulary."
        )
    return tokenizer
