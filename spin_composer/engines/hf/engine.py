"""The engine ``hf``: the policy itself answers, in the training processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spin_composer.engines.base import Engine, Opponent
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.model.adapters import mergeable


class HFEngine(Engine):
    """Generates with the policy's own parameters, gathered on every rank."""

    needs_whole_model = True
    exports_model = False

    def check(self, model: Any) -> None:
        """See :class:`Engine`; any model can generate."""

    def merges_adapters(self, model: Any) -> bool | None:
        """See :class:`Engine`."""
        return self.settings.merge_adapters if mergeable(model.model) else None

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
