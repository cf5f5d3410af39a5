"""What a layout is: a pair batch as the inputs of one forward, and where its scored rows are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from spin_composer.data.pairs import PairBatch
from spin_composer.settings.spin import LayoutName


@dataclass(frozen=True)
class ModelInputs:
    """A pair batch, laid out.

    Dimensions: N scored positions of the batch, M positions that the model computes.
    """

    kwargs: dict[str, Tensor]
    """Of the model's forward; ``input_ids`` has M elements."""
    rows: Tensor
    """int64 [N]: the scored rows among the M positions, flattened; a row may occur twice."""

    @property
    def num_positions(self) -> int:
        """M."""
        return self.kwargs["input_ids"].numel()


class Layout(Protocol):
    """Lays pair batches out; every layout gives the same log-probs but for rounding."""

    name: ClassVar[LayoutName]

    def arrange(self, batch: PairBatch) -> ModelInputs:
        """Return a batch, on the model's device, as the inputs of one forward."""
        ...
