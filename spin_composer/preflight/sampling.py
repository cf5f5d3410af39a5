"""Warning if sampling settings make responses differ from samples of the policy."""

from __future__ import annotations

import logging

from composer.utils import dist

from spin_composer.errors import format_value
from spin_composer.settings.spin import SpinSettings

log = logging.getLogger(__name__)


def warn_off_policy(settings: SpinSettings) -> None:
    """Log what :func:`off_policy_warning` returns, on the first rank."""
    warning = off_policy_warning(settings)
    if warning is not None and dist.get_global_rank() == 0:
        log.warning(warning)


def off_policy_warning(settings: SpinSettings) -> str | None:
    """Return a warning of settings with which responses are not the policy's samples, or None."""
    generation = settings.generation
    if not generation.off_policy_settings:
        return None
    given = ", ".join(
        f"{n}={format_value(getattr(generation, n))}" for n in generation.off_policy_settings
    )
    return (
        f"algorithms.spin.generation has {given}: responses are then not samples of the policy, "
        "and SPIN's fixed point is not the data's distribution."
    )
