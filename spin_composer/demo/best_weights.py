"""The weights of a run's best evaluation: what early stopping keeps."""

from __future__ import annotations

import math

from composer.core import Callback, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from torch import Tensor, nn

from spin_composer.report.history import NLL


class BestWeights(Callback):
    """Keeps a copy of the weights that had the lowest NLL of the held-out rows so far.

    For one process, whose model is whole.
    """

    def __init__(self) -> None:
        self.nll, self.step = math.inf, 0
        self.weights: dict[str, Tensor] = {}

    def eval_end(self, state: State, logger: Logger) -> None:
        """Copy the weights, if this evaluation was the best."""
        del logger
        nll = float(state.eval_metrics["eval"][NLL].compute())
        if nll < self.nll:
            assert isinstance(state.model, HuggingFaceModel)
            self.nll, self.step = nll, int(state.timestamp.batch)
            weights = state.model.model.state_dict()
            self.weights = {name: weight.cpu().clone() for name, weight in weights.items()}

    def restore(self, model: nn.Module) -> tuple[float, int]:
        """Put the kept weights into the model; return their NLL and the step that made them."""
        model.load_state_dict(self.weights)
        return self.nll, self.step
