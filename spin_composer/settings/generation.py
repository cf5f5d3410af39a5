"""The settings of generation: how the opponent answers, and by which engine."""

from __future__ import annotations

from dataclasses import asdict, field
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from spin_composer.settings.fields import (
    SECTION,
    Count,
    Number,
    OneOf,
    Positive,
    PositiveInt,
    Requirement,
    require,
)
from spin_composer.settings.section import section, section_validator
from spin_composer.settings.server import ServerSettings

ENGINES = {
    "hf": "spin_composer.engines.hf.engine:HFEngine",
    "server": "spin_composer.engines.server.engine:ServerEngine",
}
"""Engines by their names, imported when a run opens one."""

_NonEmpty = Annotated[str, Field(min_length=1)]


@section(f"{SECTION}.generation")
class GenerationSettings:
    """How the opponent answers the prompts (``algorithms.spin.generation``)."""

    max_new_tokens: Annotated[
        PositiveInt, Requirement(remedy="Set it to the longest response that you train on.")
    ] = 512
    """Longest generated response, in tokens, the stop token included. NeMo-Aligner's
    ``length_params.max_length``."""
    min_new_tokens: Count = 0
    """The stop token is forbidden before this many tokens. NeMo-Aligner's
    ``length_params.min_length``."""
    temperature: Positive = 1.0
    """Sampling temperature; other values than 1 move SPIN's fixed point."""
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling's mass; 1 samples from the whole distribution."""
    top_k: Count = 0
    """Samples among the k likeliest tokens; 0 among all."""
    repetition_penalty: Positive = 1.0
    """Divides the logits of tokens that occurred; 1 leaves them."""
    stop_strings: Annotated[list[_NonEmpty], Requirement("a list of non-empty strings")] = field(
        default_factory=list
    )
    """A response also ends (without the stop token) where it holds one of these strings."""
    batch_size: PositiveInt = 32
    """Prompts per generation batch of one rank. NeMo-Aligner's ``rollout_micro_batch_size``."""
    merge_adapters: bool = True
    """Generate with LoRA adapters merged into copies of the weights, which is faster; false saves
    the copies' memory. Engine ``server`` always merges, and refuses it; an iteration that has begun
    goes on as it began."""
    engine: Annotated[str, OneOf(ENGINES)] = "hf"
    """Who generates: ``hf``, the policy itself in the training processes, or ``server``, a
    completion server."""
    server: Annotated[ServerSettings | None, section_validator(ServerSettings)] = None
    """The completion server of engine ``server``."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        most = self.max_new_tokens
        ok = self.min_new_tokens <= most
        wanted = f"at most max_new_tokens ({most})"
        require(ok, ".min_new_tokens", self.min_new_tokens, wanted)
        if self.engine != "server":
            remedy = "Set engine: server, or remove the section."
            wanted = f"absent with {self.engine}"
            require(self.server is None, ".server", "a section", wanted, remedy)
            return self
        wanted, remedy = "a section with command or base_url", "yamls/ has an example for vLLM."
        require(self.server is not None, ".server", None, wanted, remedy)
        for name, neutral in (("min_new_tokens", 0), ("repetition_penalty", 1)):
            value, wanted = getattr(self, name), f"{neutral} with engine server"
            remedy = "Servers do not agree on what it means; remove it, or use engine: hf."
            require(value == neutral, f".{name}", value, wanted, remedy)
        return self

    def sampling_fields(self) -> dict[str, object]:
        """Return what a response depends on, for an iteration's manifest.

        Where a server listens, and how it is asked, may change when a run is resumed.
        """
        left_out = ("server", "merge_adapters")
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def off_policy_settings(self) -> list[str]:
        """Names of the settings under which responses are not samples of the policy."""
        neutral = {
            "min_new_tokens": 0,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
        }
        return [name for name, value in neutral.items() if getattr(self, name) != value]
