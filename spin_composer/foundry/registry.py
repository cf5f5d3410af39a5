"""Metrics from llm-foundry's registries.

Imported within functions only: llm-foundry takes seconds to import, and need not be installed.
"""

from __future__ import annotations

from torchmetrics import Metric

from spin_composer.errors import InputError
from spin_composer.foundry.installed import require_foundry
from spin_composer.settings.fields import suggest_key

_OF_EVERY_MODEL = ("language_cross_entropy", "language_perplexity", "token_accuracy")


def icl_metrics() -> list[str]:
    """Return the names of llm-foundry's metrics of in-context learning."""
    from llmfoundry.metrics import DEFAULT_CAUSAL_LM_EVAL_METRICS

    return [name for name in DEFAULT_CAUSAL_LM_EVAL_METRICS if name not in _OF_EVERY_MODEL]


def build_metric(name: str, where: str) -> Metric:
    """Return a new metric of a registered name.

    Args:
        name: In llm-foundry's registry of metrics.
        where: The setting that names it, for the message.

    Raises:
        InputError: llm-foundry is not installed, or knows no such metric.
    """
    require_foundry(f"{where}={name}: a metric by its name")
    from llmfoundry.metrics import metrics  # registers its own
    from llmfoundry.utils.builders import build_metric as build

    if name not in metrics:
        known = sorted(metrics.get_all())
        raise InputError(f"{where}={name} is not registered. {suggest_key(name, known)}")
    return build(name, {})
