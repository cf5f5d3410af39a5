"""The config of llm-foundry's MPT, where this stack can run that model.

Imported within functions only: llm-foundry takes seconds to import, and need not be installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers

from spin_composer.errors import InputError
from spin_composer.foundry.installed import require_foundry

if TYPE_CHECKING:
    from llmfoundry.models.mpt import MPTConfig


def check_mpt_runs() -> None:
    """Refuse MPT where llm-foundry is not installed, or where transformers is too new for it.

    Raises:
        InputError: Names what to install.
    """
    require_foundry("model: MPT (mpt_spin_lm)")
    if int(transformers.__version__.split(".")[0]) >= 5:
        raise InputError(
            f"model: llm-foundry's MPT (mpt_spin_lm) does not run under transformers "
            f"{transformers.__version__}. Install what requirements-foundry.lock holds, or take a "
            "Hugging Face model (hf_spin_lm)."
        )


def mpt_config(**settings: Any) -> MPTConfig:
    """Return an MPTConfig.

    Raises:
        InputError: This stack cannot run MPT.
    """
    check_mpt_runs()
    from llmfoundry.models.mpt import MPTConfig

    return MPTConfig(**settings)
