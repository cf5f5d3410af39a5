"""A model that is trained on exchanged labels: a control that must do harm."""

from __future__ import annotations

from torch import Tensor

from spin_composer import HFSpinLM
from spin_composer.data.pairs import PairBatch
from spin_composer.loss import PairLoss


class SwappedSpinLM(HFSpinLM):
    """Takes the generated response for the real one, and the other way round."""

    def _with_loss(
        self, batch: PairBatch, lengths: Tensor, pair_loss: PairLoss
    ) -> dict[str, Tensor]:
        def swapped(policy: Tensor, opponent: Tensor, lengths: Tensor) -> Tensor:
            return pair_loss(policy.flip(1), opponent.flip(1), lengths.flip(1))

        return super()._with_loss(batch, lengths, swapped)  # type: ignore[arg-type]
