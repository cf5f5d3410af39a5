"""The settings of a YAML's ``scheduler`` of the name ``spin``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from spin_composer.errors import InputError
from spin_composer.settings.fields import WHOLE_EPOCHS, Epochs, Number, Requirement, count_epochs
from spin_composer.settings.section import section


def _warmup(given: str) -> str:
    time = re.fullmatch(r"(?:\d+ba|(\d*\.?\d+)dur)", given)
    if time is None or float(time[1] or 0) > 1:
        raise ValueError
    return given


@section("scheduler")
class SchedulerSettings:
    """Warm-up and decay of the learning rate, which start again with every iteration."""

    t_warmup: Annotated[
        str,
        BeforeValidator(str),
        AfterValidator(_warmup),
        Requirement("a part of the iteration (0.1dur) or batches (20ba)"),
    ] = "0.1dur"
    """Length of the linear warm-up from 0: ``0.1dur`` is a tenth of the iteration (of
    ``schedule_length``, where it is set), ``20ba`` twenty batches."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    """How it falls after the warm-up."""
    alpha_f: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Multiplier of the learning rate at the iteration's end, or at that of ``schedule_length``."""
    schedule_length: Annotated[
        Epochs | None, Requirement("like '6ep', or null", WHOLE_EPOCHS.remedy)
    ] = None
    """Epochs over which it warms up and decays in each iteration (``6ep`` or ``6``); null: the
    iteration's. A longer one is left unfinished by the iteration's end: the paper's authors decay
    over 6 epochs and stop after 2."""

    def epochs(self, per_iteration: int) -> int:
        """Return the epochs that the learning rate decays over.

        Args:
            per_iteration: Epochs of training per iteration.

        Raises:
            InputError: If ``schedule_length`` is shorter than the iteration, which would end
                without learning anything where ``alpha_f`` is 0.
        """
        if self.schedule_length is None:
            return per_iteration
        length = count_epochs(self.schedule_length)
        if length < per_iteration:
            raise InputError(
                f"scheduler.schedule_length={length}ep ends before the iteration, "
                f"algorithms.spin.iteration_length={per_iteration}ep. Set it to at least that, or "
                "leave it out."
            )
        return length
