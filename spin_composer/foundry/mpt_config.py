"""The config of llm-foundry's MPT, if the installed versions can run it.

Imported within functions only: llm-foundry takes seconds to import, and need not be installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers

from spin_composer.errors import InputError
from spin_composer.foundry.installed import require_foundry
from spin_composer.settings.model import mpt_refusal, mpt_runs_on

if TYPE_CHECKING:
    from llmfoundry.models.mpt import MPTConfig


def check_mpt_runs() -> None:
    """Reject MPT where llm-foundry is not installed, or where transformers is too new for it.

    Raises:
        InputError: Names what to install.
    """
    require_foundry("model: MPT (mpt_spin_lm)")
    if not mpt_runs_on(transformers.__version__):
        raise InputError(mpt_refusal("model: MPT (mpt_spin_lm)", transformers.__version__))


def mpt_config(**settings: Any) -> MPTConfig:
    """Return an MPTConfig.

    Raises:
        InputError: The installed versions cannot run MPT.
    """
    check_mpt_runs()
    from llmfoundry.models.mpt import MPTConfig

    return MPTConfig(**settings)
