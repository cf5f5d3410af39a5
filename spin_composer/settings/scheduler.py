"""The settings of a YAML's ``scheduler`` of the name ``spin``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from spin_composer.settings.fields import Number, Requirement
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
    """Length of the linear warm-up from 0: ``0.1dur`` is a tenth of the iteration, ``20ba`` twenty
    batches."""
    decay: Literal["linear", "cosine", "constant"] = "linear"
    """How it falls after the warm-up."""
    alpha_f: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Multiplier of the learning rate at the iteration's end."""
