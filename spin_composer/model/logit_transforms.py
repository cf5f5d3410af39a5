"""Transforms that models apply between the output layer and the logits, by model type.

A scoring request returns log-probs instead of logits, so each transform is disabled in the model
during scoring and applied in the kernel, exactly once. Unknown transforms of other model types are
detected by :func:`spin_composer.model.logprobs.check_head`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel


@dataclass(frozen=True)
class LogitTransform:
    """A transform in a model's forward pass after its output layer."""

    kind: Literal["softcap", "scale", "divisor"]
    """``softcap`` c: c * tanh(logits / c); ``scale`` s: s * logits; ``divisor`` d: logits / d."""
    attribute: str
    """The attribute with the number; None means that the transform is not applied."""
    neutral: float | None
    """The value with which the transform has no effect."""
    of_config: bool = False
    """The attribute belongs to the config, not to the model."""


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
"""Transforms by ``model_type`` of the config, in the order of application."""


@dataclass(frozen=True)
class InstalledTransform:
    """A transform of a particular model, which can be read and disabled."""

    transform: LogitTransform
    owner: object
    """The model or its config."""

    @property
    def value(self) -> float | None:
        """The number, or None if the transform is not applied."""
        return getattr(self.owner, self.transform.attribute, None)

    def switch_off(self) -> None:
        """Disable the model's transform."""
        self.restore(self.transform.neutral)

    def restore(self, value: float | None) -> None:
        """Set the number to ``value``."""
        # Bypasses the validation of transformers 5's configs; some reject None (Gemma 3n).
        vars(self.owner)[self.transform.attribute] = value


def transforms_of(model: PreTrainedModel) -> list[InstalledTransform]:
    """Return the transforms that this model may apply, in order."""
    config = model.config
    return [
        InstalledTransform(transform, config if transform.of_config else model)
        for transform in LOGIT_TRANSFORMS.get(getattr(config, "model_type", ""), ())
    ]
