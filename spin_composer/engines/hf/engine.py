"""The engine ``hf``: the policy itself answers, in the training processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spin_composer.engines.base import Engine, Opponent
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.model.adapters import mergeable
from spin_composer.settings.fields import SECTION

if TYPE_CHECKING:
    from spin_composer.model.lm import SpinLM


class HFEngine(Engine):
    """Generates with the policy's own parameters, gathered on every rank."""

    needs_whole_model = True
    exports_model = False
    keeps_adapters = True

    def check(self, model: SpinLM) -> None:
        """See :class:`Engine`; every model is supported."""

    def merges_adapters(self, model: SpinLM) -> bool | None:
        """See :class:`Engine`."""
        return self.settings.merge_adapters if mergeable(model.model) else None

    def memory_remedy(self) -> str:
        """See :class:`Engine`."""
        at = f"{SECTION}.generation"
        return (
            f"Lower {at}.batch_size ({self.settings.batch_size}; an iteration that is half played "
            f"must then be deleted), set {at}.merge_adapters=false for LoRA, or let a server "
            f"generate: {at}.engine=server."
        )

    @contextmanager
    def open(self, opponent: Opponent) -> Iterator[HFGenerator]:
        """See :class:`Engine`."""
        yield HFGenerator(
            opponent.model.model,
            opponent.model.tokenizer,
            opponent.stop_token_id,
            self.settings,
            device=opponent.device,
            precision=opponent.autocast,
            merge=opponent.merge_adapters,
        )
