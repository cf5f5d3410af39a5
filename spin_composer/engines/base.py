"""The interface of engines, which generate the responses to an iteration's prompts.

An :class:`Engine` is created from a run's settings; :meth:`Engine.open` prepares it for an opponent
and yields the :class:`Generator`. To add an engine, implement both in a package of their own and
register it in ``settings.engines.ENGINES``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from composer.core import Precision

from spin_composer.data.pairs import Ids, Pair
from spin_composer.settings.engines import ENGINES, import_class
from spin_composer.settings.fields import SECTION, check
from spin_composer.settings.generation import GenerationSettings

if TYPE_CHECKING:
    from spin_composer.model.lm import SpinLM

_MERGE_ADAPTERS = f"{SECTION}.generation.merge_adapters"

OnProgress = Callable[[int, int], None]
"""Called with the numbers of prompts answered and of tokens generated so far in a call."""


def ignore_progress(answered: int, tokens: int) -> None:
    """Ignore a generator's progress."""


@dataclass(frozen=True, slots=True)
class Response:
    """A generated response: int32 token ids [G] and its finish reason."""

    ids: Ids
    finish: int
    """``STOP``, ``LENGTH`` or ``STRING``."""
    logp: float | None = None
    """Its log-prob sum as reported by a server, in nats; None if that is not the policy's."""


class Generator(Protocol):
    """Answers a unit's prompts. The same seed and prompts give the same responses."""

    def generate(
        self, prompts: Sequence[Ids], seed: int, on_progress: OnProgress = ignore_progress
    ) -> list[Response]:
        """Return one response per prompt, in order.

        Args:
            prompts: Token ids [P] of each prompt; the response continues exactly these.
            seed: Seed of the sampling.
            on_progress: Called from time to time.
        """
        ...

    def check_logps(
        self, pairs: Sequence[Pair], logps: Sequence[float | None], noise: float
    ) -> float | None:
        """Compare the log-probs that came with the responses with those of scoring.

        Args:
            pairs: Scored pairs.
            logps: The log-prob sum of each pair's generated response, from its :class:`Response`.
            noise: Noise of scoring, in nats per token.

        Returns:
            Mean absolute difference in nats per token; None if there is nothing to compare.

        Raises:
            EngineError: If they differ by more than rounding: another model generated them.
        """
        ...


@dataclass(frozen=True)
class Opponent:
    """The frozen policy of an iteration.

    Args:
        model: The SpinLM; its parameters are gathered if the engine needs the whole model.
        stop_token_id: The token that ends a response.
        fingerprint: Hash of the weights.
        precision: Composer's precision of training.
        autocast: Returns the context of training's forward passes.
        device: This rank's device.
        folder: Where the engine writes its files: the iteration's folder in the store, or a
            subfolder for a play-only job.
        merge_adapters: Generate with merged LoRA adapters.
    """

    model: SpinLM
    stop_token_id: int
    fingerprint: str
    precision: Precision
    autocast: Callable[[], AbstractContextManager[object]]
    device: torch.device
    folder: Path
    merge_adapters: bool = False


class NoGenerator:
    """Placeholder for an iteration without prompts to answer; it is never called."""

    def generate(
        self, prompts: Sequence[Ids], seed: int, on_progress: OnProgress = ignore_progress
    ) -> list[Response]:
        """Raise an AssertionError: there is nothing to answer."""
        raise AssertionError(f"{len(prompts)} prompts to answer, but no engine was opened")

    def check_logps(
        self, pairs: Sequence[Pair], logps: Sequence[float | None], noise: float
    ) -> None:
        """See :class:`Generator`; there is nothing to compare."""


class Engine(ABC):
    """Base class of engines, chosen by ``algorithms.spin.generation.engine``.

    Args:
        settings: The settings of generation.
    """

    needs_whole_model: ClassVar[bool]
    """Generation runs the policy's own forward pass: every rank gathers all parameters."""
    exports_model: ClassVar[bool]
    """The opponent is exported as a Hugging Face folder."""
    keeps_adapters: ClassVar[bool]
    """LoRA adapters can be used without merging them (``merge_adapters: false``)."""

    def __init__(self, settings: GenerationSettings):
        self.settings = settings

    @classmethod
    def check_settings(cls, settings: GenerationSettings) -> None:
        """Reject settings that the engine does not support, before data and model are read.

        Raises:
            InputError: Names the setting, its value and the remedy.
        """
        kept = not settings.merge_adapters
        wanted = f"true with engine {settings.engine}"
        remedy = "It generates with LoRA adapters merged: remove the setting, or use engine: hf."
        check(cls.keeps_adapters or not kept, _MERGE_ADAPTERS, False, wanted, remedy)

    @abstractmethod
    def check(self, model: SpinLM) -> None:
        """Reject a model that the engine cannot play with; called at the start of a run.

        Args:
            model: The SpinLM.

        Raises:
            InputError: Names the engine and the model's class.
        """

    def manifest_fields(self) -> dict[str, object]:
        """Return what a response depends on: ``generation`` of an iteration's manifest."""
        return self.settings.sampling_fields()

    def merges_adapters(self, model: SpinLM) -> bool | None:
        """Return whether LoRA adapters are merged for generation; None if there are none."""
        del model
        return None

    def memory_remedy(self) -> str:
        """Return the remedy, a sentence, for generation or scoring that runs out of memory."""
        return f"Lower {SECTION}.generation.batch_size ({self.settings.batch_size})."

    @abstractmethod
    def open(self, opponent: Opponent) -> AbstractContextManager[Generator]:
        """Return the context in which the engine generates; entering it is a collective.

        Args:
            opponent: The policy that generates.

        Raises:
            EngineError: If the engine does not start.
            EnvironmentFailure: If the machine lacks a resource.
        """


def engine_class(settings: GenerationSettings) -> type[Engine]:
    """Return the class of a run's engine."""
    return import_class(ENGINES[settings.engine].engine)


def make_engine(settings: GenerationSettings) -> Engine:
    """Return a run's engine."""
    return engine_class(settings)(settings)
