"""The optimizers of the demo's and the examples' YAMLs, by their names there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from spin_composer.errors import InputError, format_value
from spin_composer.settings.section import Config

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def make_optimizer(parameters: Iterable[nn.Parameter], section: Config) -> Optimizer:
    """Return the optimizer that a YAML's section names.

    Args:
        parameters: What it trains.
        section: ``name``, ``decoupled_adamw`` or ``rmsprop``, and the optimizer's arguments.

    Raises:
        InputError: If the name is another one.
    """
    from composer.optim import DecoupledAdamW
    from torch.optim import RMSprop

    known: dict[str, Any] = {"decoupled_adamw": DecoupledAdamW, "rmsprop": RMSprop}
    arguments = dict(section)
    name = arguments.pop("name", None)
    if name not in known:
        raise InputError(
            f"optimizer.name must be one of {', '.join(known)}, got {format_value(name)}."
        )
    return known[name](parameters, **arguments)
