"""Interface of a layout: a pair batch as the inputs of one forward, and its scored rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from spin_composer.data.pairs import PairBatch
from spin_composer.settings.spin import LayoutName


@dataclass(frozen=True)
class ModelInputs:
    """A pair batch, laid out.

    Dimensions: N scored positions of the batch, M positions of the forward pass.
    """

    kwargs: dict[str, Tensor]
    """Arguments of the model's forward; ``input_ids`` has M elements."""
    rows: Tensor
    """int64 [N]: the scored rows among the M positions, flattened; a row may occur twice."""

    @property
    def num_positions(self) -> int:
        """M."""
        return self.kwargs["input_ids"].numel()


class Layout(Protocol):
    """Lays out pair batches; all layouts give the same log-probs up to rounding."""

    name: ClassVar[LayoutName]

    def arrange(self, batch: PairBatch) -> ModelInputs:
        """Return a batch, on the model's device, as the inputs of one forward."""
        ...
