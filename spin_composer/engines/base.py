"""Engines: who answers the prompts, as their callers know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from spin_composer.data.pairs import Ids


@dataclass(frozen=True, slots=True)
class Response:
    """A generated response: int32 token ids [G], and why it ended."""

    ids: Ids
    finish: int
    """``STOP``, ``LENGTH`` or ``STRING``."""
    logp: float | None = None
    """Its log-prob sum as a server gave it, in nats; None where that is not the policy's."""


class Engine(Protocol):
    """Answers a unit's prompts. The same seed and prompts give the same responses.

    Its attribute ``heard``, if it is set, may be called meanwhile with the number of prompts that
    are answered and the tokens made so far, in this call.
    """

    def generate(self, prompts: Sequence[Ids], seed: int) -> list[Response]:
        """Return one response per prompt, in order.

        Args:
            prompts: Token ids [P] of each prompt; the response continues exactly these.
            seed: Seed of the sampling.
        """
        ...


def unheard(answered: int, tokens: int) -> None:
    """Hear of an engine's progress, and do nothing."""
