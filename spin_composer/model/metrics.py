"""The metrics of a model: of held-out rows, and those added by name."""

from __future__ import annotations

from collections.abc import Sequence

from torchmetrics import Metric

from spin_composer.errors import InputError
from spin_composer.metrics import HELD_OUT_METRICS, PairMetric


def held_out_metrics(more: Sequence[str | Metric] = ()) -> list[Metric]:
    """Return the metrics of held-out rows, the names that :mod:`spin_composer.data.held_out` has.

    Args:
        more: Further ones: names of llm-foundry's registry, or the metrics themselves.

    Raises:
        InputError: A name is not registered, or llm-foundry is not installed.
    """
    return [
        *(metric() for metric in HELD_OUT_METRICS),
        *_built(more, "model.additional_eval_metrics"),
    ]


def pair_metrics(more: Sequence[str | Metric]) -> list[PairMetric]:
    """Return further metrics of training, whose batches are pairs.

    Raises:
        InputError: A name is not registered, or its metric takes other batches.
    """
    metrics = _built(more, "model.additional_train_metrics")
    for metric in metrics:
        if not isinstance(metric, PairMetric):
            raise InputError(
                f"model.additional_train_metrics: {type(metric).__name__} takes no pairs, and "
                "training batches are pairs. Set it in model.additional_eval_metrics."
            )
    return [metric for metric in metrics if isinstance(metric, PairMetric)]


def _built(metrics: Sequence[str | Metric], where: str) -> list[Metric]:
    if not any(isinstance(metric, str) for metric in metrics):
        return [metric for metric in metrics if isinstance(metric, Metric)]
    from spin_composer.foundry.registry import build_metric

    return [build_metric(m, where) if isinstance(m, str) else m for m in metrics]
