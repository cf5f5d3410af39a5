"""The engine ``server``: a completion server generates with the exported opponent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from composer.core import Precision
from composer.utils import dist

from spin_composer.distributed import from_rank_zero
from spin_composer.engines.base import Engine, Opponent
from spin_composer.engines.server.export import (
    check_exportable,
    export_opponent,
    is_exported,
)
from spin_composer.engines.server.generator import ServerGenerator
from spin_composer.engines.server.lifecycle import Export, serve_opponent
from spin_composer.engines.server.logprob_gap import default_tolerance
from spin_composer.engines.server.settings import ServerSettings
from spin_composer.export.state import plain_state

if TYPE_CHECKING:
    from spin_composer.model.lm import SpinLM

_EXPORTED_DTYPE = {
    Precision.AMP_BF16: torch.bfloat16,
    Precision.AMP_FP8: torch.bfloat16,
    Precision.AMP_FP16: torch.float16,
}
"""The dtype that training's matrix products use; other precisions keep the parameters' dtype."""


class ServerEngine(Engine):
    """Generates by a server that loads the opponent from a folder; the model stays sharded."""

    needs_whole_model = False
    exports_model = True
    keeps_adapters = False

    def check(self, model: SpinLM) -> None:
        """See :class:`Engine`; a server must be able to load the model."""
        check_exportable(model.model)

    def manifest_fields(self) -> dict[str, object]:
        """See :class:`Engine`; the server batches requests itself."""
        fields = super().manifest_fields()
        return {name: value for name, value in fields.items() if name != "batch_size"}

    @contextmanager
    def open(self, opponent: Opponent) -> Iterator[ServerGenerator]:
        """See :class:`Engine`; rank 0 exports the model, and starts and stops the server."""
        settings = ServerSettings.of(self.settings)
        model, folder = opponent.model, opponent.folder / "opponent"
        dtype = _EXPORTED_DTYPE.get(opponent.precision)
        what = (opponent.stop_token_id, opponent.fingerprint, dtype, folder)
        weights: list[dict[str, torch.Tensor]] = []
        if not from_rank_zero(lambda: is_exported(*what)):  # reading them takes all ranks
            keep = dist.get_global_rank() == 0
            weights.append(plain_state(model.model, dtype, model, keep))

        def export() -> None:
            opponent.folder.mkdir(parents=True, exist_ok=True)
            if weights:  # as large as the model: freed before the server starts
                export_opponent(model.model, model.tokenizer, *what, state=weights.pop())

        tolerance = settings.logp_tolerance
        if tolerance is None:
            tolerance = default_tolerance(opponent.precision)

        def make(url: str, check_alive: Callable[[], None], api_key: str) -> ServerGenerator:
            return ServerGenerator(
                url,
                model.tokenizer,
                opponent.stop_token_id,
                self.settings,
                check_alive,
                api_key,
                tolerance,
            )

        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # memory for a server on the same GPU
        with serve_opponent(settings, Export(folder, export), make) as generator:
            yield generator
