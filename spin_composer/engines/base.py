"""Engines: who answers an iteration's prompts, as play knows them.

An :class:`Engine` is made from a run's settings; :meth:`Engine.open` makes it ready for an
opponent and yields the :class:`Generator` that answers. To add an engine, write both in a package
of their own and register the engine in ``settings.engines.ENGINES``.
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
"""Called with the prompts that are answered, and the tokens generated, so far in a call."""


def ignore_progress(answered: int, tokens: int) -> None:
    """Hear of a generator's progress, and do nothing."""


@dataclass(frozen=True, slots=True)
class Response:
    """A generated response: int32 token ids [G], and why it ended."""

    ids: Ids
    finish: int
    """``STOP``, ``LENGTH`` or ``STRING``."""
    logp: float | None = None
    """Its log-prob sum as a server gave it, in nats; None where that is not the policy's."""


class Generator(Protocol):
    """Answers a unit's prompts. The same seed and prompts give the same responses."""

    def generate(
        self, prompts: Sequence[Ids], seed: int, on_progress: OnProgress = ignore_progress
    ) -> list[Response]:
        """Return one response per prompt, in order.

        Args:
            prompts: Token ids [P] of each prompt; the response continues exactly these.
            seed: Seed of the sampling.
            on_progress: Called now and then meanwhile.
        """
        ...

    def check_logps(
        self, pairs: Sequence[Pair], logps: Sequence[float | None], noise: float
    ) -> float | None:
        """Compare log-probs that came with responses with those of scoring.

        Args:
            pairs: Scored ones.
            logps: Of each pair's generated response as its :class:`Response` had it.
            noise: Of scoring, in nats per token.

        Returns:
            Mean absolute difference in nats per token; None if there are none to compare.

        Raises:
            EngineError: If they differ by more than rounding: another model answered.
        """
        ...


@dataclass(frozen=True)
class Opponent:
    """The frozen policy of an iteration, as an engine gets it.

    Args:
        model: The SpinLM; its parameters are gathered where the engine needs them whole.
        stop_token_id: The one token that ends a response.
        fingerprint: Of the weights.
        precision: Of training, as Composer names it.
        autocast: Returns the context that training's forward passes run in.
        device: This rank's.
        folder: The iteration's folder in the store, or a job's in it, for what the engine writes.
        merge_adapters: Generate with LoRA adapters merged.
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
    """Stands where all prompts of an iteration are answered: it is never asked."""

    def generate(
        self, prompts: Sequence[Ids], seed: int, on_progress: OnProgress = ignore_progress
    ) -> list[Response]:
        """Raise: nothing is left to be answered."""
        raise AssertionError(f"{len(prompts)} prompts to answer, but no engine was opened")

    def check_logps(
        self, pairs: Sequence[Pair], logps: Sequence[float | None], noise: float
    ) -> None:
        """See :class:`Generator`; nothing was generated."""


class Engine(ABC):
    """How prompts are answered: ``algorithms.spin.generation.engine``.

    Args:
        settings: Which engine, and how it samples.
    """

    needs_whole_model: ClassVar[bool]
    """Generation runs the policy's own forward, so every rank holds its parameters gathered."""
    exports_model: ClassVar[bool]
    """The opponent is written as a Hugging Face folder."""
    keeps_adapters: ClassVar[bool]
    """LoRA adapters may stay beside the weights that generate (``merge_adapters: false``)."""

    def __init__(self, settings: GenerationSettings):
        self.settings = settings

    @classmethod
    def check_settings(cls, settings: GenerationSettings) -> None:
        """Refuse settings that the engine cannot follow; called before data and model are read.

        Raises:
            InputError: Names the setting, its value and the remedy.
        """
        kept = not settings.merge_adapters
        wanted = f"true with engine {settings.engine}"
        remedy = "It generates with LoRA adapters merged: remove the setting, or use engine: hf."
        check(cls.keeps_adapters or not kept, _MERGE_ADAPTERS, False, wanted, remedy)

    @abstractmethod
    def check(self, model: SpinLM) -> None:
        """Refuse a model that the engine cannot play with; called at the start of a run.

        Args:
            model: The SpinLM.

        Raises:
            InputError: Names the engine and the model's class.
        """

    def manifest_fields(self) -> dict[str, object]:
        """Return what a response depends on: ``generation`` of an iteration's manifest."""
        return self.settings.sampling_fields()

    def merges_adapters(self, model: SpinLM) -> bool | None:
        """Return whether LoRA adapters are merged meanwhile; None if there are none to merge."""
        del model
        return None

    def memory_remedy(self) -> str:
        """Return what to set where generation or scoring does not fit in memory, a sentence."""
        return f"Lower {SECTION}.generation.batch_size ({self.settings.batch_size})."

    @abstractmethod
    def open(self, opponent: Opponent) -> AbstractContextManager[Generator]:
        """Return the context in which the engine answers; a collective at entry.

        Args:
            opponent: Whose responses are wanted.

        Raises:
            EngineError: If it does not start.
            EnvironmentFailure: If the machine has not what it takes.
        """


def engine_class(settings: GenerationSettings) -> type[Engine]:
    """Return the class of a run's engine."""
    return import_class(ENGINES[settings.engine].engine)


def make_engine(settings: GenerationSettings) -> Engine:
    """Return a run's engine."""
    return engine_class(settings)(settings)
