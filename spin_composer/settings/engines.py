"""The engines by name, and the settings that each declares for itself.

An engine's package declares its settings in a module that loads nothing heavy, so that a YAML can
be checked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spin_composer.settings.section import Config

if TYPE_CHECKING:
    from spin_composer.settings.generation import GenerationSettings


class EngineSettings:
    """Base class of an engine's own section, ``algorithms.spin.generation.<engine>``.

    A subclass is made a section by :func:`spin_composer.settings.section.section`.
    """

    @classmethod
    def check_generation(cls, generation: GenerationSettings) -> None:
        """Reject generation settings that the engine does not support.

        Raises:
            ValueError: The message without its prefix ``algorithms.spin.generation``.
        """

    def launch_problems(self, cfg: Config) -> Iterator[str]:
        """Yield one line per problem that can only be found on the machine of the run.

        Args:
            cfg: The training config.
        """
        del cfg
        yield from ()


@dataclass(frozen=True)
class EngineEntry:
    """Where an engine is implemented, each as ``module:Class``."""

    engine: str
    """Subclass of :class:`spin_composer.engines.base.Engine`; imported when a run starts."""
    settings: str | None = None
    """Subclass of :class:`EngineSettings`; None if the engine has no section of its own."""


ENGINES: dict[str, EngineEntry] = {
    "hf": EngineEntry("spin_composer.engines.hf.engine:HFEngine"),
    "server": EngineEntry(
        "spin_composer.engines.server.engine:ServerEngine",
        "spin_composer.engines.server.settings:ServerSettings",
    ),
}
"""The registry: one entry per engine."""


def import_class(path: str) -> Any:
    """Return the class that ``module:Class`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def engine_sections() -> dict[str, type[EngineSettings]]:
    """Return the settings class of each engine that has a section of its own."""
    return {
        name: import_class(entry.settings)
        for name, entry in ENGINES.items()
        if entry.settings is not None
    }
