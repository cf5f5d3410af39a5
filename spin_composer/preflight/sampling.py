"""Warning if sampling settings make responses differ from samples of the policy."""

from __future__ import annotations

import logging

from composer.utils import dist

from spin_composer.errors import format_value
from spin_composer.settings.spin import SpinSettings

log = logging.getLogger(__name__)


def warn_off_policy(settings: SpinSettings) -> None:
    """Warn about sampling settings with which responses are not samples of the policy."""
    generation = settings.generation
    if generation.off_policy_settings and dist.get_global_rank() == 0:
        given = ", ".join(
            f"{n}={format_value(getattr(generation, n))}" for n in generation.off_policy_settings
        )
        log.warning(
            f"algorithms.spin.generation has {given}: responses are then not samples of the "
            "policy, and SPIN's fixed point is not the data's distribution."
        )
