"""The steps between the output layer and the logits that models take themselves, by model type.

A scoring request replaces the logits by log-probs, so each of these steps is switched off in the
model meanwhile and made in the kernel, exactly once. A model of another type whose logits are not
its output layer's product is found by :func:`spin_composer.model.logprobs.check_head`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel


@dataclass(frozen=True)
class LogitTransform:
    """A step of a model's forward after its output layer."""

    kind: Literal["softcap", "scale", "divisor"]
    """``softcap`` c: c * tanh(logits / c); ``scale`` s: s * logits; ``divisor`` d: logits / d."""
    attribute: str
    """Where the model reads the number; None there means that it does not take the step."""
    neutral: float | None
    """What that is set to for the step to change nothing."""
    of_config: bool = False
    """The attribute is the config's, not the model's."""


_CONFIG_SOFTCAP = LogitTransform("softcap", "final_logit_softcapping", None, of_config=True)
_CONFIG_DIVISOR = LogitTransform("divisor", "logits_scaling", 1.0, of_config=True)
_MODEL_SCALE = LogitTransform("scale", "logit_scale", 1.0)

LOGIT_TRANSFORMS: dict[str, tuple[LogitTransform, ...]] = {
    "cohere": (_MODEL_SCALE,),
    "cohere2": (_MODEL_SCALE,),
    "cohere2_moe": (_MODEL_SCALE,),
    "gemma2": (_CONFIG_SOFTCAP,),
    "gemma3_text": (_CONFIG_SOFTCAP,),
    "gemma3n_text": (_CONFIG_SOFTCAP,),
    "gemma4_text": (_CONFIG_SOFTCAP,),
    "granite": (_CONFIG_DIVISOR,),
    "granite_swa": (_CONFIG_DIVISOR,),
    "granitemoe": (_CONFIG_DIVISOR,),
    "granitemoe_swa": (_CONFIG_DIVISOR,),
    "granitemoehybrid": (_CONFIG_DIVISOR,),
    "granitemoeshared": (_CONFIG_DIVISOR,),
    "mpt": (
        LogitTransform("scale", "logit_scale", None),
        LogitTransform("softcap", "final_logit_softcapping", None),
    ),
    "vaultgemma": (_CONFIG_SOFTCAP,),
}
"""By ``model_type`` of the config, in the order in which the model takes them."""


@dataclass(frozen=True)
class InstalledTransform:
    """A transform of a certain model, which can be read and switched off."""

    transform: LogitTransform
    owner: object
    """The model or its config."""

    @property
    def value(self) -> float | None:
        """The number, or None where the model does not take the step."""
        return getattr(self.owner, self.transform.attribute, None)

    def switch_off(self) -> None:
        """Make the model's own step change nothing."""
        self.restore(self.transform.neutral)

    def restore(self, value: float | None) -> None:
        """Give the model the number ``value``."""
        # Past the checks of transformers 5's configs, some of which take no None (Gemma 3n).
        vars(self.owner)[self.transform.attribute] = value


def transforms_of(model: PreTrainedModel) -> list[InstalledTransform]:
    """Return the steps after the output layer that this model may take, in order."""
    config = model.config
    return [
        InstalledTransform(transform, config if transform.of_config else model)
        for transform in LOGIT_TRANSFORMS.get(getattr(config, "model_type", ""), ())
    ]
