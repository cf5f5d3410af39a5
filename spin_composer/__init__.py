"""Self-play fine-tuning (SPIN, arXiv 2401.01335) for Composer and llm-foundry.

The names below are imported on first use: Composer takes seconds to import, and the command
line's help and checks must not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spin_composer.algorithm import SPIN
    from spin_composer.data.loader import build_spin_dataloader, build_spin_evaluator
    from spin_composer.export.callback import HuggingFaceExporter
    from spin_composer.foundry.mpt import MPTSpinLM
    from spin_composer.judge.callback import SpinJudge
    from spin_composer.model.lm import HFSpinLM
    from spin_composer.schedule import SpinScheduler

__version__ = "0.1.0"

_EXPORTS = {
    "SPIN": "spin_composer.algorithm",
    "SpinScheduler": "spin_composer.schedule",
    "HuggingFaceExporter": "spin_composer.export.callback",
    "SpinJudge": "spin_composer.judge.callback",
    "HFSpinLM": "spin_composer.model.lm",
    "MPTSpinLM": "spin_composer.foundry.mpt",
    "build_spin_dataloader": "spin_composer.data.loader",
    "build_spin_evaluator": "spin_composer.data.loader",
}

__all__ = [
    "SPIN",
    "HFSpinLM",
    "HuggingFaceExporter",
    "MPTSpinLM",
    "SpinJudge",
    "SpinScheduler",
    "__version__",
    "build_spin_dataloader",
    "build_spin_evaluator",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'spin_composer' has no attribute {name!r}")
    if _EXPORTS[name].startswith("spin_composer.foundry."):
        from spin_composer.foundry.installed import require_foundry

        require_foundry(f"spin_composer.{name}")
    return getattr(import_module(_EXPORTS[name]), name)
