"""The settings of generation: the sampling parameters, and the engine that generates."""

from __future__ import annotations

from dataclasses import asdict, field
from typing import Annotated

from pydantic import Field, model_validator
from typing_extensions import Self

from spin_composer.settings.engines import ENGINES, EngineSettings, engine_sections
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
from spin_composer.settings.section import section

ENGINE_SECTIONS = engine_sections()
"""Settings classes by engine: each is an optional field of :class:`GenerationSettings`."""

_NonEmpty = Annotated[str, Field(min_length=1)]


@section(f"{SECTION}.generation", subsections=ENGINE_SECTIONS)
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
    the copies' memory. Engines that always merge (``server``) refuse false. An iteration that was
    started with one value is finished with it."""
    engine: Annotated[str, OneOf(ENGINES)] = "hf"
    """Who generates: ``hf``, the policy itself in the training processes, or ``server``, a
    completion server."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        most = self.max_new_tokens
        ok = self.min_new_tokens <= most
        wanted = f"at most max_new_tokens ({most})"
        require(ok, ".min_new_tokens", self.min_new_tokens, wanted)
        for name in ENGINE_SECTIONS:
            if name != self.engine:
                remedy = f"Set engine: {name}, or remove the section."
                wanted = f"absent with {self.engine}"
                require(getattr(self, name) is None, f".{name}", "a section", wanted, remedy)
        if self.engine in ENGINE_SECTIONS:
            ENGINE_SECTIONS[self.engine].check_generation(self)
        return self

    @property
    def engine_section(self) -> EngineSettings | None:
        """The chosen engine's own section; None if it is absent or the engine has none."""
        return getattr(self, self.engine, None)

    def sampling_fields(self) -> dict[str, object]:
        """Return what a response depends on, for an iteration's manifest.

        An engine's own section (a server's address, timeouts) may change when a run is resumed.
        """
        left_out = (*ENGINE_SECTIONS, "merge_adapters")
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
